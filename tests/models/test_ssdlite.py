from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import get_model

from cnnctl.models import published_detectors
from cnnctl.models.ssdlite import SSDLite
from cnnctl.structures import Images, Targets

K = 4


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def images_of(pixels: Tensor) -> Images:
    sizes = [(pixels.shape[2], pixels.shape[3])] * len(pixels)
    return Images(pixels, sizes, sizes)


def targets_of(n: int, side: int) -> Targets:
    boxes = torch.tensor([[[10.0, 20, 50, 60], [55, 40, 90, 75]]]).expand(n, 2, 4) * side / 100
    return Targets(torch.arange(n), boxes=boxes, labels=torch.tensor([[0, 3]]).expand(n, 2))


@pytest.fixture(scope="module")
def ours() -> SSDLite:
    torch.manual_seed(0)
    return SSDLite(3, K, (320, 320))


def test_is_torchvisions_network_under_its_names(ours):
    theirs: Any = get_model(
        "ssdlite320_mobilenet_v3_large",
        weights=None,
        weights_backbone=None,
        num_classes=K + 1,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
    )
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    theirs.load_state_dict(before)
    images, targets = images_of(noise(2, 3, 320, 320)), targets_of(2, 320)
    assert targets.boxes is not None
    assert targets.labels is not None
    truth = [{"boxes": targets.boxes[i], "labels": targets.labels[i] + 1} for i in range(2)]
    with torch.no_grad():
        losses = ours.train().loss(images, targets)
        expected = theirs.train()(list(images.pixels), truth)
        torch.testing.assert_close(losses["class"], expected["classification"])
        torch.testing.assert_close(losses["box"], expected["bbox_regression"])
        # The same running statistics too, by which detections are made.
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
        found = ours.eval().features(images.pixels)
        maps = list(theirs.eval().backbone(images.pixels).values())
        said = theirs.head(maps)
        shown = SimpleNamespace(tensors=images.pixels, image_sizes=images.sizes)
        defaults = theirs.anchor_generator(shown, maps)[0]
    ours.load_state_dict(before)
    torch.testing.assert_close(found.logits, said["cls_logits"])
    torch.testing.assert_close(found.deltas, said["bbox_regression"])
    torch.testing.assert_close(found.defaults, defaults, rtol=0, atol=1e-3)
    rules, numbers = ours.rules, (theirs.score_thresh, theirs.nms_thresh, theirs.topk_candidates)
    assert (rules.score, rules.overlap, rules.candidates) == numbers
    assert rules.detections == theirs.detections_per_img


@pytest.mark.parametrize(
    ("side", "sides"),
    [(320, [20, 10, 5, 3, 2, 1]), (128, [8, 4, 2, 1]), (96, [6, 3, 2, 1]), (16, [1])],
)
def test_maps_end_with_one_pixel(side, sides):
    with torch.device("meta"):
        model = SSDLite(3, K, (side, side)).eval()
        maps = model.backbone(torch.zeros(1, 3, side, side))
        said = model.features(torch.zeros(1, 3, side, side))
    assert [tuple(level.shape[2:]) for level in maps.values()] == [(s, s) for s in sides]
    assert said.logits.shape == (1, 6 * sum(s * s for s in sides), K + 1)


def test_scales_and_ratios_of_the_default_boxes(ours):
    """Squares of 0.2 to 0.95 of the image on the six maps, and lying and standing ones."""
    scales = [0.2, 0.35, 0.5, 0.65, 0.8, 0.95]
    shapes = ours.shapes.view(6, 6, 2)
    torch.testing.assert_close(shapes[:, 0], torch.tensor(scales)[:, None].expand(6, 2))
    torch.testing.assert_close(shapes[5, 1], torch.full((2,), 0.95**0.5))
    torch.testing.assert_close(
        shapes[0, 2:, 0] / shapes[0, 2:, 1], torch.tensor([2, 0.5, 3, 1 / 3])
    )


def test_one_image_alone_can_be_trained_on():
    """Its map of one pixel has no statistics, which torch's own layer refuses."""
    torch.manual_seed(0)
    model = SSDLite(1, K, (64, 64)).train()
    losses = model.loss(images_of(noise(1, 1, 64, 64)), targets_of(1, 64))
    torch.stack(list(losses.values())).sum().backward()
    assert all(loss.isfinite() for loss in losses.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_published_weights_load_by_the_names_of_classes(ours, monkeypatch):
    state = {
        name: torch.rand_like(value) if value.is_floating_point() else value
        for name, value in ours.state_dict().items()
    }
    monkeypatch.setattr(published_detectors, "published_weights", lambda entry: state)
    entry = SimpleNamespace(meta={"categories": ["__background__", "a", "b", "c", "d"]})
    monkeypatch.setattr(published_detectors, "entry_of", lambda *_: entry)
    part = SSDLite(3, 2, (320, 320), weights="COCO_V1", classes=("d", "b"))
    other = SSDLite(3, 1, (320, 320), weights="COCO_V1", classes=("x",))
    last = "head.classification_head.module_list.{}.1"
    rows = part.state_dict()[f"{last.format(0)}.weight"].unflatten(0, (6, 3))
    assert torch.equal(rows, state[f"{last.format(0)}.weight"].unflatten(0, (6, 5))[:, [0, 4, 2]])
    assert part.rebuilt == ()
    assert other.rebuilt == tuple(last.format(place) for place in range(6))
    before = "head.classification_head.module_list.0.0.0.weight"
    assert torch.equal(other.state_dict()[before], state[before])
    # Pixels were from -1 to 1: the first convolution and what follows make of ours the same.
    stem = "backbone.features.0.0"
    raw = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values)[:, None, None] for values in published_detectors.HERE)
    with torch.no_grad():
        theirs = torch.nn.functional.conv2d(raw * 2 - 1, state[f"{stem}.0.weight"])
        theirs = theirs - state[f"{stem}.1.running_mean"][:, None, None]
        own = part.state_dict()
        found = torch.nn.functional.conv2d((raw - mean) / std, own[f"{stem}.0.weight"])
        found = found - own[f"{stem}.1.running_mean"][:, None, None]
    torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="published weights are of an input of 320 x 320"):
        SSDLite(3, 2, (96, 96), weights="COCO_V1", classes=("d", "b"))


def test_refuses():
    with pytest.raises(ValueError, match="needs images of at least 16 x 16, got 15 x 20"):
        SSDLite(3, K, (15, 20))
    with pytest.raises(ValueError, match="of a backbone with reduced_tail false"):
        SSDLite(3, K, (320, 320), backbone_weights="IMAGENET1K_V1")
    with pytest.raises(ValueError, match="set backbone_weights to null"):
        SSDLite(3, K, (320, 320), weights="COCO_V1", backbone_weights="IMAGENET1K_V1")
    with pytest.raises(ValueError, match="scales must be 0 < scale_min <= scale_max"):
        SSDLite(3, K, (320, 320), scale_min=0.9, scale_max=0.5)
