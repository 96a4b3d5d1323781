"""Fast R-CNN: what it makes of given proposals, how it samples them, its truncated layers."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cnnctl.backbones.resnet import ResNet
from cnnctl.backbones.vgg import VGG
from cnnctl.models import fast_rcnn
from cnnctl.models.fast_rcnn import FastRCNN
from cnnctl.ops.boxes import iou
from cnnctl.ops.clock import CONVOLUTION, POST_PROCESSING, REGIONS, Clock
from cnnctl.structures import Images, Predictions, Targets

BOXES = torch.tensor([[[10, 20, 50, 60], [0, 0, 0, 0]], [[5, 5, 25, 29], [40, 3, 64, 60]]]).float()
LABELS = torch.tensor([[1, -1], [0, 2]])


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_boxes(images: int, count: int, side: int = 64) -> Tensor:
    """(N, P, 4) inside images of ``side``, none the same."""
    generator = torch.Generator().manual_seed(2)
    low = torch.rand(images, count, 2, generator=generator) * (side - 16)
    size = 8 + torch.rand(images, count, 2, generator=generator) * 24
    return torch.cat([low, (low + size).clamp(max=side)], 2)


def images_of(pixels: Tensor, proposals: Tensor) -> Images:
    sizes = [(pixels.shape[2], pixels.shape[3])] * len(pixels)
    return Images(pixels, sizes, list(sizes), proposals)


def targets_of(boxes: Tensor, labels: Tensor) -> Targets:
    return Targets(torch.arange(len(boxes)), boxes=boxes, labels=labels)


def batch(count: int = 30) -> tuple[Images, Targets]:
    return images_of(noise(2, 3, 64, 64), some_boxes(2, count)), targets_of(BOXES, LABELS)


def small(**options: Any) -> FastRCNN:
    """A network whose scores differ from region to region."""
    return copy.deepcopy(_small(**options))


@functools.cache
def _small(**options: Any) -> FastRCNN:
    torch.manual_seed(0)
    model = FastRCNN(3, ResNet(18), (64, 64), **{"score": 0.0, **options})
    model.head.cls_score.weight.data.normal_(std=0.3)
    model.head.bbox_pred.weight.data.normal_(std=0.05)
    return model


def columns(found: Predictions) -> tuple[Tensor, Tensor, Tensor]:
    assert found.boxes is not None
    assert found.scores is not None
    assert found.labels is not None
    return found.boxes, found.scores, found.labels


def test_numbers_of_the_paper_and_of_small_images():
    with torch.device("meta"):
        paper = FastRCNN(20, VGG(16), (600, 1000))
        little = FastRCNN(10, VGG(16), (96, 96))
    assert (paper.stride, paper.bins, paper.regions, paper.lowest) == (16, 7, 64, 0.1)
    shapes = {name: tuple(value.shape) for name, value in paper.head.named_parameters()}
    assert shapes["top.1.weight"] == (4096, 512 * 49)
    assert shapes["cls_score.weight"] == (21, 4096)
    assert shapes["bbox_pred.weight"] == (80, 4096)
    assert (little.stride, little.bins, little.regions) == (8, 4, 32)
    assert [p.shape[0] for name, p in little.head.top.named_parameters() if "weight" in name] == [
        *(256, 256)
    ]
    assert FastRCNN.reads_proposals


def test_layers_start_as_the_paper_says():
    """Section 2.3: normal of 0.01 and 0.001, zero biases."""
    torch.manual_seed(0)
    head = FastRCNN(10, ResNet(18), (64, 64)).head
    assert head.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert head.bbox_pred.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert not head.cls_score.bias.any()
    assert not head.bbox_pred.bias.any()


def test_hierarchical_sampling(monkeypatch):
    """A quarter of an image's regions overlap an object by a half or more, all others by 0.1."""
    asked = []
    original = fast_rcnn.region_losses
    monkeypatch.setattr(
        fast_rcnn,
        "region_losses",
        lambda logits, deltas, regions, bend: (
            asked.append(regions) or original(logits, deltas, regions, bend)
        ),
    )
    model = small(regions=16)
    steps = torch.arange(0, 40, 2.0)
    near = BOXES[:, :1] + torch.stack([steps, steps * 0, steps, steps * 0], 1)  # (2, 20, 4)
    images = images_of(noise(2, 3, 64, 64), near.clamp(0, 64))
    model.loss(images, targets_of(BOXES, LABELS))
    (regions,) = asked
    for row in range(2):
        own = regions.image == row
        truth = BOXES[row][LABELS[row] >= 0]
        most = iou(regions.boxes[own], truth).amax(1)
        objects = regions.labels[own] < 3
        assert objects.sum() == 4
        assert (most[objects] >= 0.5).all()
        assert (most[~objects] < 0.5).all()
        assert (most[~objects] >= 0.1).all()


@pytest.mark.parametrize("proposals", [0, 20])
@pytest.mark.parametrize("rows", [2, 0])
@pytest.mark.parametrize("dense", [None, ()])
def test_without_a_box_or_a_proposal(proposals, rows, dense):
    model = small(dense=dense)
    boxes, labels = torch.zeros(2, rows, 4), torch.full((2, rows), -1)
    images, _ = batch(proposals)
    losses = model.loss(images, targets_of(boxes, labels))
    assert losses["class"] == losses["box"] == 0, "no background overlaps an object"
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert all(value.isfinite().all() for value in model.state_dict().values())
    model.eval()
    with torch.no_grad():
        found_boxes, scores, _ = columns(model.predict(images))
        assert (found_boxes.shape[1] > 0) == (proposals > 0)
        assert scores.isfinite().all()
        assert model.loss(images, targets_of(boxes, labels))["class"] == 0
    empty = images_of(noise(2, 3, 64, 64), torch.zeros(2, 5, 4))  # rows of no proposal
    with torch.no_grad():
        assert columns(model.predict(empty))[0].shape == (2, 0, 4)


def test_a_row_without_area_is_no_proposal():
    model = small().eval()
    images, _ = batch(12)
    assert images.proposals is not None
    filled = torch.cat([images.proposals, torch.zeros(2, 7, 4)], 1)
    with torch.no_grad():
        expected = columns(model.predict(images))
        found = columns(model.predict(images_of(images.pixels, filled)))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_one_image_is_the_batch_and_few_regions_at_a_time_are_all(monkeypatch):
    """Also where the image is smaller than the network's input, whose pixels proposals are not."""
    model = small(detections=1000).eval()
    pixels, proposals = noise(3, 3, 60, 50), some_boxes(3, 20, side=100)
    sizes, originals = [(60, 50)] * 3, [(120, 100)] * 3

    def predicted(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        own = Images(pixels[rows], sizes[rows], originals[rows], proposals[rows])
        with torch.no_grad():
            return columns(model.predict(own))

    whole = predicted(slice(None))
    assert whole[2].shape[1] > 20
    assert whole[0].max() > 60, "in original pixels"
    for row in range(3):
        boxes, scores, labels = predicted(slice(row, row + 1))
        count = labels.shape[1]
        assert labels[0].tolist() == whole[2][row, :count].tolist()
        torch.testing.assert_close(scores[0], whole[1][row, :count], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(boxes[0], whole[0][row, :count], rtol=1e-4, atol=1e-3)
    monkeypatch.setattr(fast_rcnn, "CHUNK", 7 * model.pooled_numbers)
    sides = []
    model.head.top.register_forward_hook(lambda _, given, out: sides.append(len(out)))
    few = predicted(slice(None))
    assert sides == [7] * 8 + [4]
    for one, other in zip(few, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("svd", [(256, 256), 1.0])
def test_full_rank_is_the_plain_network(svd):
    images, _ = batch()
    plain, truncated = small().eval(), small(svd=svd).eval()
    with torch.no_grad():
        expected, found = columns(plain.predict(images)), columns(truncated.predict(images))
    assert found[2].tolist() == expected[2].tolist()
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-3)


def test_truncated_layers_are_of_prediction_alone():
    """Training, validation loss and checkpoints know the whole weights."""
    plain, truncated = small().eval(), small(svd=(2, 3)).eval()
    images, targets = batch()
    assert plain.state_dict().keys() == truncated.state_dict().keys()
    with torch.no_grad():
        for model in (plain, truncated):
            torch.manual_seed(0)
            model.kept = model.loss(images, targets)["class"]  # pyright: ignore
        assert plain.kept == truncated.kept
        first, second = (columns(model.predict(images))[1] for model in (plain, truncated))
    assert (first[:, :5] - second[:, :5]).abs().max() > 1e-3
    for name, value in truncated.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name])
    dense = [layer for layer in truncated.head.top.children() if isinstance(layer, nn.Linear)]
    for one, layer, rank in zip(truncated.truncated, dense, (2, 3), strict=True):
        up, down = one.factors(layer.weight)
        assert (up.shape, down.shape) == ((256, rank), (rank, layer.in_features))
    with torch.device("meta"):
        ranks = [one.rank for one in FastRCNN(20, VGG(16), (600, 800), svd=0.25).truncated]
    assert ranks == [1024, 1024]


def test_parts_of_the_time():
    model, (images, _) = small().eval(), batch()
    with torch.no_grad(), Clock() as clock:
        model.predict(images)
    assert clock.seconds.keys() == {CONVOLUTION, REGIONS, POST_PROCESSING}
    assert min(clock.seconds.values()) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regions": 0}, "regions must be at least 1, got 0"),
        ({"dense": (4, 0)}, "dense must be at least 1, got 0"),
        ({"lowest": 1.5}, "lowest must be from 0 to 1, got 1.5"),
        ({"svd": 0.0}, "svd must be ranks, or a share above 0 and up to 1, got 0"),
        ({"svd": (4,)}, r"svd must be 2 ranks from 1 to at most \[256, 256\], got \[4\]"),
        ({"svd": (4, 257)}, r"svd must be 2 ranks from 1 to at most .*, got \[4, 257\]"),
        ({"svd": 0.5, "dense": ()}, "svd needs dense layers above the map"),
    ],
)
def test_refuses(options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        FastRCNN(3, ResNet(18), (64, 64), **options)
