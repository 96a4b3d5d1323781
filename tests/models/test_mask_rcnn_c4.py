"""Mask R-CNN on one map: what its mask is made of, and what it is learnt from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from cnnctl.backbones.resnet import ResNet
from cnnctl.backbones.vgg import VGG
from cnnctl.models.faster_rcnn_c4 import FasterRCNNC4
from cnnctl.models.mask_rcnn_c4 import MaskRCNNC4
from cnnctl.ops.masks import pack
from cnnctl.ops.run_lengths import decode
from cnnctl.structures import Images, Targets

BOXES = torch.tensor([[[10.0, 20, 50, 60], [0, 0, 0, 0]], [[5, 5, 25, 29], [40, 3, 64, 60]]])
LABELS = torch.tensor([[1, -1], [0, 2]])


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def images_of(pixels: Tensor) -> Images:
    sizes = [(pixels.shape[2], pixels.shape[3])] * len(pixels)
    return Images(pixels, sizes, list(sizes))


def targets_of(boxes: Tensor, labels: Tensor) -> Targets:
    """Each object fills the upper half of its box."""
    bits, crop = pack([torch.tensor([[True], [False]])])
    crops = crop.expand(*labels.shape, 3).clone()
    return Targets(
        torch.arange(len(boxes)),
        boxes=boxes,
        labels=labels,
        frames=boxes.clone(),
        crops=crops,
        bits=bits.expand(len(boxes), -1).clone(),
    )


def small(**options: Any) -> MaskRCNNC4:
    torch.manual_seed(0)
    numbers: dict[str, Any] = {"regions": 8, "proposals_train": 20, "proposals_test": 8}
    return MaskRCNNC4(3, ResNet(18), (64, 64), **{**numbers, "mask_width": 4, **options})


@pytest.fixture(scope="module")
def narrow() -> MaskRCNNC4:
    return small()


@pytest.mark.parametrize(
    ("size", "bins", "side", "deconvolutions"), [(600, 14, 14, 1), (96, 7, 16, 2)]
)
@pytest.mark.parametrize("agnostic", [False, True])
def test_sides_of_masks(size, bins, side, deconvolutions, agnostic):
    """The paper's 14 x 14 of c5 of 7 x 7; 16 x 16 of 4 x 4."""
    with torch.device("meta"):
        model = MaskRCNNC4(20, ResNet(50), (size, size), class_agnostic=agnostic)
    assert (model.bins, model.side) == (bins, side)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.ConvTranspose2d)]
    assert [layer.in_channels for layer in layers] == [2048, 256][:deconvolutions]
    assert model.masks.mask_fcn_logits.weight.shape == (1 if agnostic else 20, 256, 1, 1)


def test_parts_of_a_region(narrow):
    """Class, box and mask are all of c5 of what RoI align reads."""
    model = narrow.eval()
    boxes, image = torch.tensor([[3.0, 4, 40, 50], [10, 0, 64, 64]]), torch.tensor([1, 0])
    with torch.no_grad():
        maps = model.features(noise(2, 3, 64, 64)).map
        rows = torch.cat([image[:, None].float(), boxes], 1)
        pooled = roi_align(maps, rows, 7, 1 / 16, 2)
        deep = model.head.top.get_submodule("layer4")(pooled)
        torch.testing.assert_close(model._deep(maps, boxes, image), deep, rtol=1e-4, atol=1e-4)
        for found, expected in zip(
            model._read(maps, boxes, image), model.head.named(deep.mean((2, 3))), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        larger = model.larger[0](deep).relu()
        first, second = model.masks.conv5_mask, model.masks.mask_fcn_logits
        larger = nn.functional.conv_transpose2d(larger, first.weight, first.bias, 2).relu()
        logits = nn.functional.conv2d(larger, second.weight, second.bias)
        said = model._masks(deep, torch.tensor([2, 0]))
    assert said.shape == (2, 16, 16)
    torch.testing.assert_close(said, torch.stack([logits[0, 2], logits[1, 0]]))


def test_boxes_are_faster_rcnns(narrow, monkeypatch):
    """The same losses from the same weights and seed, where that reads regions by RoI align."""
    plain = FasterRCNNC4(3, ResNet(18), (64, 64), map="c4", dense=(), regions=8, proposals_train=20)
    plain.load_state_dict(narrow.state_dict(), strict=False)
    monkeypatch.setattr(plain, "pooled", narrow.pooled)
    losses = []
    for model in (narrow, plain):
        model.train()
        torch.manual_seed(1)
        with torch.no_grad():
            losses.append(model.loss(images_of(noise(2, 3, 64, 64)), targets_of(BOXES, LABELS)))
    assert losses[0].keys() - losses[1].keys() == {"mask"}
    assert losses[0]["mask"].item() == pytest.approx(0.693, abs=0.02)
    for name, loss in losses[1].items():
        torch.testing.assert_close(losses[0][name], loss)


@pytest.mark.parametrize("case", ["objects", "none", "no rows", "no masks"])
def test_gradients(narrow, case):
    """All that is trained has one, which without masks is 0 for what makes them."""
    boxes, labels = BOXES, LABELS
    if case == "none":
        labels = torch.full_like(LABELS, -1)
    if case == "no rows":
        boxes, labels = BOXES[:, :0], LABELS[:, :0]
    targets = targets_of(boxes, labels)
    if case == "no masks":
        targets = replace(targets, frames=None, crops=None, bits=None)
    model = narrow.train()
    model.zero_grad()
    losses = model.loss(images_of(noise(2, 3, 64, 64)), targets)
    assert (losses["mask"] > 0) == (case == "objects")
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if case == "objects":
            assert parameter.grad.abs().sum() > 0, name


def test_masks_are_in_original_pixels():
    """A network that says the right half of each box."""
    model = small(score=0.0, class_agnostic=True).eval()
    model.head.cls_score.weight.data.normal_(std=2.0)
    half = torch.full((16, 16), -9.0)
    half[:, 8:] = 9
    model.masks.forward = lambda hidden, output: half.expand(len(hidden), 16, 16)
    originals = [(128, 64), (64, 64)]
    with torch.no_grad():
        said = model.predict(Images(noise(2, 3, 64, 64), [(64, 64)] * 2, originals))
    assert said.masks is not None
    assert said.boxes is not None
    assert said.sizes == originals
    for boxes, masks, size in zip(said.boxes, said.masks, originals, strict=True):
        assert len(masks) > 5
        for (x1, y1, x2, y2), counts in zip(boxes.tolist(), masks, strict=False):
            expected = torch.zeros(size, dtype=torch.bool)
            y, x = torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5
            inside = (x >= (x1 + x2) / 2) & (x <= x2)
            expected[:] = ((y >= y1) & (y <= y2))[:, None] & inside
            wrong = (decode(counts, size) != expected).sum()
            assert wrong <= 2 * (x2 - x1 + y2 - y1) + 4  # of the border only


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_width": 0}, "mask_width must be at least 1, got 0"),
        ({"regions": 0}, "regions must be at least 1, got 0"),
    ],
)
def test_refuses(options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        small(**options)


def test_refuses_another_backbone():
    with torch.device("meta"), pytest.raises(ValueError, match="needs a ResNet, got VGG"):
        MaskRCNNC4(3, VGG(11), (64, 64))
