"""The CIFAR ResNets against the paper's section 4.2 and against published weights."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cnnctl.models.cifar_resnet import CifarResNet, PadShortcut

SIZE = (32, 32)


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


# The weights of akamaster/pytorch_resnet_cifar10 (published: 91.73, 92.63, 93.10, 93.39 % on the
# true test set). These pixels went through JPEG, which costs about ten points: the data's README
# has 81.03, 82.56, 82.67 and 83.20 % on all 10,000.
@pytest.mark.data
@pytest.mark.parametrize(
    ("depth", "hits"),
    [
        (20, 401),
        *(pytest.param(*row, marks=pytest.mark.slow) for row in ((32, 420), (44, 413), (56, 416))),
    ],
)
def test_published_weights_on_500_images(depth, hits):
    if "CNNCTL_DATA" not in os.environ:
        pytest.skip("CNNCTL_DATA is not set")
    root = Path(os.environ["CNNCTL_DATA"])
    weights = list(root.glob(f"weights/cifar10_resnet_akamaster/resnet{depth}-*.th"))
    images = root / "cifar-10-batches-bin" / "test_batch.bin"
    if not weights or not images.is_file():
        pytest.skip(f"no weights or no CIFAR-10 under {root}")
    raw = torch.frombuffer(bytearray(images.read_bytes()[: 500 * 3073]), dtype=torch.uint8)
    label, pixels = raw.reshape(500, 3073).split([1, 3072], 1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = pixels.reshape(500, 3, 32, 32) / 255
    pixels = (pixels - mean[:, None, None]) / std[:, None, None]
    state = torch.load(weights[0], map_location="cpu", weights_only=True)["state_dict"]
    model = CifarResNet(3, 10, SIZE, depth).eval()
    model.load_state_dict({k.removeprefix("module."): v for k, v in state.items()}, strict=True)
    with torch.no_grad():
        found = (model(pixels).argmax(1) == label[:, 0]).sum().item()
    assert found == pytest.approx(hits, abs=1)  # one image may turn on the order of additions
