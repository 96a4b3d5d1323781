from __future__ import annotations

import pytest
import torch
from torchvision import models
from torchvision.models import get_model

from cnnctl.backbones import base
from cnnctl.engine.layers import layer_table
from cnnctl.models.deeplab import DeepLab


def narrow(**changed) -> DeepLab:
    torch.manual_seed(0)
    return DeepLab(2, 4, width=2, **changed).eval()


@pytest.mark.parametrize("norm", [False, True])
def test_parameters_and_view_of_the_paper(norm):
    """Table 2: 20.5 million. VGG-16's convolutions have 14,714,688 of them."""
    with torch.device("meta"):
        model = DeepLab(3, 21, norm=norm)
    own = 14_714_688 + (9 * 512 + 1) * 1024 + 1025 * 1024 + 1025 * 21
    assert own == 20_505_429
    # Two numbers for each of the 4224 channels of VGG-16's 13 layers.
    assert sum(p.numel() for p in model.parameters()) == own + norm * 2 * 4224
    table = layer_table(model, 3, (321, 321))
    rows = {row.name: row for row in table.rows}
    assert rows["classify"].shape == (21, 41, 41)  # 321 = 8 * 40 + 1
    assert rows["classify"].field == (419, 419)
    last = next(name for name in reversed(rows) if name.startswith("features"))
    assert rows[last].field == (227, 227)


@pytest.mark.parametrize("h", [1, 2, 8, 9, 10, 31])
@pytest.mark.parametrize("w", [1, 7, 16, 17])
def test_every_size_is_kept(h, w):
    with torch.no_grad():
        assert narrow()(torch.randn(2, 2, h, w)).shape == (2, 4, h, w)


def test_scores_lie_on_the_pixels_they_come_from():
    """Position i of a map is that of pixel 8i: shifted by 8, an image has shifted scores."""
    model = narrow().double()
    pixels = torch.zeros(1, 2, 945, 937, dtype=torch.float64)
    pixels[..., 460:470, 455:480] = torch.randn(10, 25, dtype=torch.float64)
    with torch.no_grad():
        scores = model(pixels)
        moved = model(pixels.roll((8, 16), (2, 3)))
    inside = (..., slice(450, 500), slice(450, 500))
    torch.testing.assert_close(moved.roll((-8, -16), (2, 3))[inside], scores[inside])


def test_a_mirrored_image_has_mirrored_scores():
    """With filters that are their own mirror image: nothing is half a pixel off on the way."""
    model = narrow().requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.weight.copy_((layer.weight + layer.weight.flip(3)) / 2)
    pixels = torch.randn(1, 2, 33, 33)
    torch.testing.assert_close(model(pixels.flip(3)), model(pixels).flip(3))


@pytest.mark.parametrize("norm", [False, True])
def test_with_its_poolings_undone_it_is_torchvisions_vgg(norm):
    """The same names, the same layers: conv5 before dilation, poolings of 2x2 and stride 2."""
    torch.manual_seed(0)
    name = "vgg16_bn" if norm else "vgg16"
    with torch.device("meta"):
        ours, theirs = DeepLab(3, 21, norm=norm).features, get_model(name).get_submodule("features")
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    dilations = [m.dilation[0] for m in ours if isinstance(m, torch.nn.Conv2d)]
    assert dilations == [1] * 10 + [2] * 3
    strides = [m.stride for m in ours if isinstance(m, torch.nn.MaxPool2d)]
    assert strides == [2, 2, 2, 1, 1]


@pytest.mark.parametrize("channels", [3, 1])
def test_published_weights_load(monkeypatch, channels):
    """fc6 keeps every fourth filter and rows and columns 0, 3, 6 of its 7x7 windows."""
    with torch.device("meta"):
        shapes = get_model("vgg16").state_dict()
    published = {name: torch.zeros(1).expand(value.shape) for name, value in shapes.items()}
    generator = torch.Generator().manual_seed(0)
    for name in ("features.0.weight", "features.28.weight", "classifier.0.bias"):
        published[name] = torch.randn(shapes[name].shape, generator=generator)
    taps = torch.arange(49.0).view(1, 1, 7, 7) + 100 * torch.arange(4096.0).view(-1, 1, 1, 1)
    published["classifier.0.weight"] = taps.expand(4096, 512, 7, 7).reshape(4096, -1)
    rows, columns = torch.arange(4096.0)[:, None], torch.arange(4096.0)
    published["classifier.3.weight"] = rows + columns / 4096
    asked = []
    monkeypatch.setattr(base, "published_weights", lambda entry: asked.append(entry) or published)
    model = DeepLab(channels, 21, weights="IMAGENET1K_V1")
    assert asked == [models.VGG16_Weights.IMAGENET1K_V1.value]
    first = published["features.0.weight"]
    if channels == 1:
        first = first.sum(1, keepdim=True)
    own = model.state_dict()
    torch.testing.assert_close(own["features.0.weight"], first)
    assert torch.equal(own["features.28.weight"], published["features.28.weight"])
    expected = torch.tensor([[0.0, 3, 6], [21, 24, 27], [42, 45, 48]])
    assert torch.equal(own["fc6.weight"][5, 7], 100 * 20 + expected)
    assert torch.equal(own["fc6.bias"], published["classifier.0.bias"][::4])
    assert own["fc7.weight"][2, 3, 0, 0] == 8 + 12 / 4096
    assert own["classify.weight"].std().item() == pytest.approx(0.01, rel=0.05)


def test_refuses():
    with pytest.raises(ValueError, match='weights must be null or IMAGENET1K_V1, got "COCO"'):
        narrow(weights="COCO")
    with pytest.raises(ValueError, match="published weights are of width 64, got 2"):
        narrow(weights="IMAGENET1K_V1")
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1.0"):
        narrow(dropout=1.0)
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        DeepLab(1, 2, width=0)
