"""The CIFAR ResNets against the paper's section 4.2 and against published weights."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from cnnctl.data.cifar10 import CIFAR10
from cnnctl.models.cifar_resnet import CifarResNet, PadShortcut

SIZE = (32, 32)
TRAINED = "weights/cifar10_resnet_akamaster/resnet{}-*.th"


@pytest.mark.parametrize(
    ("depth", "millions"),
    [(20, "0.27"), (32, "0.46"), (44, "0.66"), (56, "0.85"), (110, "1.7"), (1202, "19.4")],
)
def test_parameters_of_table_6(depth, millions):
    with torch.device("meta"):
        model = CifarResNet(3, 10, SIZE, depth)
    count = sum(p.numel() for p in model.parameters()) / 1e6
    digits = len(millions.split(".")[1])
    assert f"{count:.{digits}f}" == millions
    weighted = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(weighted) == depth


def test_plain_twin_has_the_same_weights_and_b_has_two_projections_more():
    residual, plain = CifarResNet(3, 10, SIZE, 20), CifarResNet(3, 10, SIZE, 20, plain=True)
    assert list(residual.state_dict()) == list(plain.state_dict())
    projected = CifarResNet(3, 10, SIZE, 20, "B")
    more = set(projected.state_dict()) - set(residual.state_dict())
    assert {name.rsplit(".", 2)[0] for name in more} == {"layer2.0.shortcut", "layer3.0.shortcut"}
    count = sum(p.numel() for p in projected.parameters())
    assert count - sum(p.numel() for p in residual.parameters()) == 16 * 32 + 32 * 64 + 2 * (
        32 + 64
    )


@pytest.mark.parametrize("variant", [("A", False), ("B", False), ("A", True)])
def test_contract(check, variant):
    torch.manual_seed(0)
    check(CifarResNet(3, 10, SIZE, 14, *variant), 3, SIZE, 10)


@pytest.mark.parametrize(("channels", "size"), [(1, (8, 8)), (2, (33, 20)), (3, (4, 4))])
def test_contract_on_other_inputs(check, channels, size):
    torch.manual_seed(0)
    check(CifarResNet(channels, 5, size, 8), channels, size, 5)


def test_overfits_eight_images(overfit):
    torch.manual_seed(0)
    overfit(CifarResNet(3, 4, (16, 16), 8), 3, (16, 16), 4)


def test_blocks_without_weights_are_shortcuts():
    """With its convolutions at zero a residual network passes the pixels on; a plain one cannot."""
    pixels = torch.rand(2, 16, 9, 9, generator=torch.Generator().manual_seed(0))
    for plain in (False, True):
        model = CifarResNet(3, 10, SIZE, 14, plain=plain).eval()
        for block in (*model.layer1, *model.layer2):
            for parameter in block.get_submodule("conv2").parameters():
                nn.init.zeros_(parameter)
        expected = F.pad(pixels[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))
        out = model.layer2(model.layer1(pixels))
        assert torch.equal(out, torch.zeros_like(out) if plain else expected)


def test_shortcut_a_by_hand_and_in_channels_last():
    pixels = torch.arange(1.0, 33).reshape(1, 2, 4, 4).to(memory_format=torch.channels_last)
    out = PadShortcut(2, 3)(pixels)
    zeros = [[0.0, 0.0], [0.0, 0.0]]
    kept = [[[1.0, 3.0], [9.0, 11.0]], [[17.0, 19.0], [25.0, 27.0]]]
    assert out[0].tolist() == [zeros, *kept, zeros, zeros]
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_he_initialisation():
    """He et al. 2015 (arXiv:1502.01852), equation 10: variance 2 / inputs, mean 0."""
    torch.manual_seed(0)
    model = CifarResNet(3, 10, SIZE, 20)
    weight = model.state_dict()["layer3.1.conv1.weight"]
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert weight.mean().item() == pytest.approx(0, abs=1e-3)
    assert model.linear.bias.count_nonzero() == 0


@pytest.mark.parametrize("depth", [2, 18, 21, 0, -4, 111])
def test_refuses_other_depths(depth):
    with pytest.raises(ValueError, match=rf"depth must be 6n \+ 2 .*, got {depth}"):
        CifarResNet(3, 10, SIZE, depth)


def test_refuses_small_images_and_unknown_shortcuts():
    with pytest.raises(ValueError, match="at least 4 x 4, got 32 x 3"):
        CifarResNet(3, 10, (32, 3), 20)
    with pytest.raises(ValueError, match='shortcut must be "A" or "B", got "C"'):
        CifarResNet(3, 10, SIZE, 20, "C")  # pyright: ignore[reportArgumentType]


def published(model: CifarResNet) -> dict[str, torch.Tensor]:
    """Weights as akamaster's files have them, for pixels normalised by ImageNet's numbers."""
    generator = torch.Generator().manual_seed(1)
    return {
        f"module.{name}": torch.rand(value.shape, generator=generator)
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def test_published_weights_take_the_datas_pixels():
    """The same image, normalised by the data's numbers here and by ImageNet's there."""
    mean, std = CIFAR10.mean, CIFAR10.std
    ours = CifarResNet(3, 10, SIZE, 8, mean=mean, std=std).eval()
    theirs = CifarResNet(3, 10, SIZE, 8).eval()
    state = published(theirs)
    theirs.load_state_dict({name.removeprefix("module."): v for name, v in state.items()})
    ours.load_state_dict(ours.translate(state))
    pixels = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def stem(model: CifarResNet, numbers: tuple[tuple[float, ...], ...]) -> torch.Tensor:
        less, over = (torch.tensor(part)[:, None, None] for part in numbers)
        return model.bn1(model.conv1((pixels - less) / over))[..., 1:-1, 1:-1]  # not the border

    found, expected = stem(ours, (mean, std)), stem(theirs, imagenet)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    same = theirs.translate(state)
    assert all(
        torch.equal(same[name], value)
        for name, value in theirs.state_dict().items()
        if name in same
    )


def test_grey_pixels_are_three_equal_channels():
    grey = CifarResNet(1, 10, SIZE, 8, mean=(0.3,), std=(0.5,))
    colour = CifarResNet(3, 10, SIZE, 8, mean=(0.3,) * 3, std=(0.5,) * 3)
    state = published(colour)
    one, three = grey.translate(state), colour.translate(state)
    assert torch.equal(one["bn1.running_mean"], three["bn1.running_mean"])
    torch.testing.assert_close(one["conv1.weight"], three["conv1.weight"].sum(1, keepdim=True))


def test_other_weights_are_left_as_they_are_or_refused():
    model = CifarResNet(3, 10, SIZE, 14)
    own = model.state_dict()
    assert model.translate(own) is own
    other = {"module.features.0.weight": torch.zeros(1)}
    assert list(model.translate(other)) == ["features.0.weight"]
    with pytest.raises(ValueError, match="these weights are of depth 8, the network is of 14"):
        model.translate(published(CifarResNet(3, 10, SIZE, 8)))
    with pytest.raises(ValueError, match="these weights are of 3 channels, the data has 4"):
        CifarResNet(4, 10, SIZE, 14).translate(published(CifarResNet(3, 10, SIZE, 14)))


# The weights of akamaster/pytorch_resnet_cifar10 (published: 91.73, 92.63, 93.10, 93.39 % on the
# true test set). The pixels at hand went through JPEG, which costs about ten points; of the first
# 4,000 training images there are the true ones too.
def real(*names: str) -> list[Path]:
    """What matches each name under $CNNCTL_DATA."""
    if "CNNCTL_DATA" not in os.environ:
        pytest.skip("CNNCTL_DATA is not set")
    found = [sorted(Path(os.environ["CNNCTL_DATA"]).glob(name)) for name in names]
    if missing := [name for name, paths in zip(names, found, strict=True) if not paths]:
        pytest.skip(f"no {missing[0]} under $CNNCTL_DATA")
    return [path for paths in found for path in paths]


def images_of(file: Path, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    raw = torch.frombuffer(bytearray(file.read_bytes()[: count * 3073]), dtype=torch.uint8)
    label, pixels = raw.reshape(count, 3073).split([1, 3072], 1)
    return pixels.reshape(count, 3, 32, 32), label[:, 0]


def hits(model: CifarResNet, pixels: torch.Tensor, label: torch.Tensor) -> int:
    mean, std = (torch.tensor(part)[:, None, None] for part in model.normal)
    with torch.inference_mode():
        parts = [(part / 255 - mean) / std for part in pixels.split(500)]
        best = torch.cat([model(part).argmax(1) for part in parts])
    return int((best == label).sum())


@pytest.mark.data
@pytest.mark.parametrize(
    ("depth", "right"),
    [
        (20, 401),
        *(pytest.param(*row, marks=pytest.mark.slow) for row in ((32, 420), (44, 413), (56, 416))),
    ],
)
def test_published_weights_on_500_images(depth, right):
    weights, images = real(TRAINED.format(depth), "cifar-10-batches-bin/test_batch.bin")
    model = loaded(CifarResNet(3, 10, SIZE, depth), weights)
    # One image may turn on the order of additions.
    assert hits(model, *images_of(images, 500)) == pytest.approx(right, abs=1)


# Measured independently, with ImageNet's mean and deviation; here with those of data=cifar10.
@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "lossy", "lossless"),
    [(20, 81.03, 99.80), (32, 82.56, 100.0), (44, 82.67, 99.98), (56, 83.20, 100.0)],
)
def test_published_weights_on_all_images(depth, lossy, lossless):
    weights, images = real(TRAINED.format(depth), "cifar-10-batches-bin/test_batch.bin")
    model = loaded(CifarResNet(3, 10, SIZE, depth, mean=CIFAR10.mean, std=CIFAR10.std), weights)
    accuracy = hits(model, *images_of(images, 10_000)) / 100
    assert accuracy == pytest.approx(lossy, abs=0.1)
    *files, labels = real(
        "cifar10/lossless_first4000/*.png", "cifar10/train_labels_official_order.json"
    )
    label = torch.tensor(json.loads(labels.read_text())[:4000])
    rows = [np.asarray(Image.open(file).convert("RGB")).reshape(-1, 32, 32, 3) for file in files]
    pixels = torch.from_numpy(np.concatenate(rows)).permute(0, 3, 1, 2)
    assert hits(model, pixels, label) / 40 == pytest.approx(lossless, abs=0.1)


def loaded(model: CifarResNet, file: Path) -> CifarResNet:
    state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict(model.translate(state), strict=True)
    return model.eval()
