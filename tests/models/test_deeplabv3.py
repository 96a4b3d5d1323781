from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model

from cnnctl.engine.layers import layer_table
from cnnctl.models.deeplabv3 import DeepLabV3, PooledNorm
from cnnctl.structures import Images, Targets


@pytest.fixture(scope="module")
def small() -> DeepLabV3:
    torch.manual_seed(0)
    return DeepLabV3(3, 5, "mobilenet_v3_large")


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("variant", ["resnet50", "mobilenet_v3_large"])
def test_is_torchvisions_network_under_its_names(variant):
    torch.manual_seed(0)
    ours = DeepLabV3(3, 5, variant).eval()
    theirs = get_model(
        f"deeplabv3_{variant}", num_classes=5, aux_loss=True, weights_backbone=None
    ).eval()
    theirs.load_state_dict(ours.network.state_dict())
    with torch.no_grad():
        expected, found = theirs(noise(2, 3, 41, 50)), ours.outputs(noise(2, 3, 41, 50))
        assert list(found) == ["out", "aux"]
        torch.testing.assert_close(found, dict(expected))
        torch.testing.assert_close(ours(noise(2, 3, 41, 50)), expected["out"])


@pytest.mark.parametrize(("variant", "stride"), [("resnet101", 8), ("mobilenet_v3_large", 16)])
def test_output_stride(variant, stride):
    with torch.device("meta"):
        model = DeepLabV3(3, 21, variant)
    shapes = {row.name: row.shape for row in layer_table(model, 3, (256, 256)).rows}
    assert shapes["network.classifier.4"] == (21, 256 // stride, 256 // stride)
    assert not any("aux" in name for name in shapes)  # not computed for a prediction


@pytest.mark.parametrize("size", [(1, 1), (2, 17), (8, 9), (33, 31)])
def test_every_size_is_kept(small, size):
    with torch.no_grad():
        assert small.eval()(noise(1, 3, *size)).shape == (1, 5, *size)


@pytest.mark.parametrize("auxiliary", [False, True])
def test_losses_of_the_heads(auxiliary):
    torch.manual_seed(0)
    model = DeepLabV3(3, 5, "mobilenet_v3_large", auxiliary).eval()
    mask = torch.randint(0, 5, (2, 32, 32)).byte()
    images = Images(noise(2, 3, 32, 32), [(32, 32)] * 2, [(32, 32)] * 2)
    with torch.no_grad():
        losses = model.loss(images, Targets(torch.arange(2), mask=mask))
        outputs = model.outputs(images.pixels)
    expected = {
        f"{name}_cross_entropy".removeprefix("out_"): share
        * nn.functional.cross_entropy(outputs[name], mask.long())
        for name, share in {"out": 1.0, **({"aux": 0.5} if auxiliary else {})}.items()
    }
    torch.testing.assert_close(losses, expected)


def test_one_image_alone_can_be_trained_on(small):
    """The pooled branch has one value a channel then, which torch's own layer refuses."""
    model = small.train()
    mask = torch.zeros(1, 64, 64).byte()
    images = Images(noise(1, 3, 64, 64), [(64, 64)], [(64, 64)])
    losses = model.loss(images, Targets(torch.arange(1), mask=mask))
    torch.stack(list(losses.values())).sum().backward()
    pooled = model.network.classifier[0].convs[-1]
    assert isinstance(pooled[2], PooledNorm)
    assert pooled[1].weight.grad.abs().sum() > 0


def test_pooled_norm():
    """Two images: torch's own layer. One: the running statistics, which it does not move."""
    ours, theirs = PooledNorm.of(nn.BatchNorm2d(4)), nn.BatchNorm2d(4)
    for _ in range(3):
        pooled = noise(3, 4, 1, 1) * 2 + 1
        torch.testing.assert_close(ours(pooled), theirs(pooled))
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    one = noise(1, 4, 1, 1)
    torch.testing.assert_close(ours(one), theirs.eval()(one))
    torch.testing.assert_close(ours.state_dict(), before)
    with pytest.raises(ValueError, match="Expected more than 1 value"):
        theirs.train()(one)


def test_refuses():
    with pytest.raises(ValueError, match=r'variant must be resnet50, .* got "resnet18"'):
        DeepLabV3(3, 21, "resnet18")  # pyright: ignore[reportArgumentType]
