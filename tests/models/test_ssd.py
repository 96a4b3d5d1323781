from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import get_model
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD as TorchvisionSSD
from torchvision.models.detection.ssd import SSDFeatureExtractorVGG
from torchvision.ops import box_iou

from cnnctl.backbones.resnet import ResNet
from cnnctl.backbones.vgg import VGG
from cnnctl.models import published_detectors
from cnnctl.models.detection import Truth
from cnnctl.models.published_detectors import CAFFE
from cnnctl.models.ssd import SSD, SSDVGG, Rules, Said, SingleShot
from cnnctl.structures import Images, Targets

SIDE, K = 96, 4


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images_of(pixels: Tensor) -> Images:
    sizes = [(pixels.shape[2], pixels.shape[3])] * len(pixels)
    return Images(pixels, sizes, sizes)


def batch(side: int = SIDE) -> tuple[Images, Targets]:
    """Three images: two boxes, one (of all of the image), none; the last row of two is padding."""
    boxes = torch.zeros(3, 2, 4)
    boxes[0] = torch.tensor([[10.0, 20, 50, 60], [60, 40, 80, 75]])
    boxes[1, 0] = torch.tensor([0.0, 0, 96, 96])
    labels = torch.tensor([[0, 3], [2, -1], [-1, -1]])
    targets = Targets(torch.arange(3), boxes=boxes * side / SIDE, labels=labels)
    return images_of(noise(3, 3, side, side)), targets


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def their_targets(targets: Targets) -> list[dict[str, Tensor]]:
    assert targets.boxes is not None
    assert targets.labels is not None
    return [
        {"boxes": boxes[labels >= 0], "labels": labels[labels >= 0] + 1}
        for boxes, labels in zip(targets.boxes, targets.labels, strict=True)
    ]


@pytest.fixture(scope="module")
def vgg() -> SSDVGG:
    torch.manual_seed(0)
    return SSDVGG(3, K, (SIDE, SIDE))


@pytest.fixture(scope="module")
def small() -> SSD:
    torch.manual_seed(0)
    return SSD(ResNet(18), K, (SIDE, SIDE))


def torchvisions(ours: SSDVGG, steps: list[int], scales: list[float]) -> TorchvisionSSD:
    """torchvision's training and detection around the same network."""
    theirs = TorchvisionSSD(
        ours.backbone,
        DefaultBoxGenerator([[2], [2, 3], [2], [2]], scales=scales, steps=steps),
        (SIDE, SIDE),
        K + 1,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        head=ours.head,
    )
    return theirs


def test_losses_and_detections_are_torchvisions(vgg):
    step = (0.87 - 0.15) / 2
    scales = [0.07, 0.15, 0.15 + step, 0.87, 0.87 + step]
    theirs = torchvisions(vgg, [8, 16, 32, 64], scales)
    images, targets = batch()
    pixels = list(images.pixels)
    with torch.no_grad():
        losses = vgg.train().loss(images, targets)
        expected = theirs.train()(pixels, their_targets(targets))
        torch.testing.assert_close(losses["class"], expected["classification"])
        torch.testing.assert_close(losses["box"], expected["bbox_regression"])
        assert losses["box"] > 0.1
        found, expected = vgg.eval().predict(images), theirs.eval()(pixels)
    for image in range(3):
        own = {"boxes": found.boxes, "scores": found.scores, "labels": found.labels}
        own = {name: column[image] for name, column in own.items()}
        there = own["labels"] >= 0
        assert there.sum() == len(expected[image]["labels"]) == 200
        torch.testing.assert_close(own["scores"][there], expected[image]["scores"])
        same = own["labels"][there] + 1 == expected[image]["labels"]  # but for near ties
        assert same.float().mean() > 0.95
        apart = (own["boxes"][there] - expected[image]["boxes"]).abs().amax(1)
        assert (apart < 1e-3)[same].float().mean() > 0.95


def test_names_and_shapes_of_weights_are_torchvisions():
    with torch.device("meta"):
        ours = SSDVGG(3, 90, (300, 300)).state_dict()
        theirs = get_model("ssd300_vgg16", weights=None, weights_backbone=None).state_dict()
    assert {name: w.shape for name, w in ours.items()} == {n: w.shape for n, w in theirs.items()}


@pytest.mark.slow
def test_maps_and_default_boxes_are_torchvisions():
    torch.manual_seed(0)
    ours = SSDVGG(3, K, (300, 300)).eval()
    theirs = SSDFeatureExtractorVGG(VGG(16).features, highres=False).eval()
    theirs.load_state_dict(ours.backbone.state_dict())
    whole: Any = get_model("ssd300_vgg16", weights=None, weights_backbone=None)
    pixels = noise(1, 3, 300, 300)
    with torch.no_grad():
        expected, found = theirs(pixels), ours.backbone(pixels)
        torch.testing.assert_close(found, dict(expected))
        boxes = whole.anchor_generator(
            SimpleNamespace(tensors=pixels, image_sizes=[(300, 300)]), list(expected.values())
        )[0]
        torch.testing.assert_close(ours.features(pixels).defaults, boxes, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("side", "sides", "count"),
    [
        (300, [38, 19, 10, 5, 3, 1], 8732),
        (512, [64, 32, 16, 8, 4, 2, 1], 24564),
        (128, [16, 8, 4, 2], 4 * 256 + 6 * 64 + 4 * 16 + 4 * 4),
        (64, [8, 4, 2, 1], 4 * 64 + 6 * 16 + 4 * 4 + 4),
        (16, [2, 1], 4 * 4 + 4),
    ],
)
def test_default_boxes_are_so_many(side, sides, count):
    """Section 3: 8,732 of SSD300 and 24,564 of SSD512; on small images fewer maps."""
    with torch.device("meta"):
        model = SSDVGG(3, 20, (side, side)).eval()
        maps = model.backbone(torch.zeros(1, 3, side, side))
        assert [tuple(level.shape[2:]) for level in maps.values()] == [(s, s) for s in sides]
        said = model.features(torch.zeros(2, 3, side, side))
    assert said.logits.shape == (2, count, 21)
    assert said.deltas.shape == (2, count, 4)
    assert said.defaults.shape == (count, 4)


def test_default_boxes_of_an_oblong_image_by_hand(vgg):
    """Shares of its width and of its height; centres half a step from the border."""
    boxes = vgg.default_boxes([(1, 2), (1, 1), (1, 1), (1, 1)], (100, 200))
    assert boxes.shape == (4 * 2 + 6 + 4 + 4, 4)
    width, height = 0.07 * 200, 0.07 * 100
    middle = torch.tensor([4 - width / 2, 4 - height / 2, 4 + width / 2, 4 + height / 2])
    torch.testing.assert_close(boxes[0], middle)
    torch.testing.assert_close(boxes[4], middle + torch.tensor([8.0, 0, 8, 0]))
    torch.testing.assert_close(boxes[8, :2] + boxes[8, 2:], torch.tensor([16.0, 16.0]))


def test_first_map_starts_with_length_twenty(vgg):
    with torch.no_grad():
        first = vgg.backbone(noise(1, 3, SIDE, SIDE))["0"]
    torch.testing.assert_close(first.norm(dim=1), torch.full((1, 12, 12), 20.0))


@pytest.mark.parametrize(
    ("side", "sides"), [(96, [12, 6, 3, 2, 1]), (64, [8, 4, 2, 1]), (32, [4, 2, 1])]
)
def test_maps_of_any_backbone_end_with_one_pixel(side, sides):
    model = SSD(ResNet(18, in_channels=1), K, (side, side)).eval()
    with torch.no_grad():
        maps = model.backbone(noise(1, 1, side, side))
        said = model.features(noise(1, 1, side, side))
    assert [level.shape[2] for level in maps.values()] == sides
    centres = (said.defaults[-4:, :2] + said.defaults[-4:, 2:]) / 2
    torch.testing.assert_close(centres, torch.full((4, 2), side / 2))


def said_of(boxes: Tensor, logits: Tensor) -> tuple[SingleShot, Said]:
    model = SingleShot(
        torch.nn.Identity(), torch.nn.Identity(), [torch.ones(1, 2)], [None], Rules()
    )
    return model, Said(logits, torch.zeros(*logits.shape[:2], 4), boxes)


def test_loss_by_hand():
    """One box on the first of six default boxes: that one and the three most wrong others."""
    defaults = torch.tensor([[20.0 * i, 0, 20 * i + 10, 10] for i in range(6)])
    wrong = torch.tensor([1.0, 0.1, 0.2, 0.3, 0.4, 0.5])  # logit of class 0 over background
    logits = torch.stack([torch.zeros(6), wrong], 1)[None]
    model, said = said_of(defaults, logits)
    truth = Truth(torch.tensor([[[1.0, 0, 11, 10]]]), torch.tensor([[0]]))
    losses = model.losses(said, images_of(torch.zeros(1, 3, 10, 120)), truth)
    background = torch.nn.functional.softplus(wrong[3:]).sum()
    expected = torch.nn.functional.softplus(-wrong[0]) + background
    torch.testing.assert_close(losses["class"], expected)
    assert losses["box"].item() == pytest.approx(0.5)  # shift by 0.1 times 10: smooth L1 of 1


@pytest.mark.parametrize("r", [0, 2])
def test_no_box_in_any_image(small, r):
    """The paper's loss is 0 then; gradients are zeros and not absent."""
    targets = Targets(torch.arange(2), boxes=torch.zeros(2, r, 4), labels=torch.full((2, r), -1))
    small.zero_grad()
    losses = small.train().loss(images_of(noise(2, 3, SIDE, SIDE)), targets)
    assert {name: loss.item() for name, loss in losses.items()} == {"class": 0, "box": 0}
    total(losses).backward()
    assert all(p.grad is not None and not p.grad.any() for p in small.parameters())


def test_every_map_learns(small):
    """Objects of every size, of which one is some default box of each map."""
    images = images_of(noise(2, 3, SIDE, SIDE))
    maps = small.eval().features(images.pixels)
    counts = [12 * 12 * 4, 6 * 6 * 6, 3 * 3 * 6, 2 * 2 * 4, 4]
    assert len(maps.defaults) == sum(counts)
    firsts = torch.tensor(counts).cumsum(0) - torch.tensor(counts)
    boxes = maps.defaults[firsts].clamp(0, SIDE).expand(2, -1, 4)
    targets = Targets(torch.arange(2), boxes=boxes, labels=torch.arange(5).expand(2, 5) % K)
    small.zero_grad()
    total(small.train().loss(images, targets)).backward()
    for name, parameter in small.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_one_image_is_the_batch(small):
    images, _ = batch()
    small.eval()
    with torch.no_grad():
        said = small.features(images.pixels)
        whole = small.detect(said, images)
        for row in range(3):
            one = images_of(images.pixels[row : row + 1])
            alone = small.features(one.pixels)
            torch.testing.assert_close(alone.logits[0], said.logits[row], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(alone.deltas[0], said.deltas[row], rtol=1e-4, atol=1e-4)
            # Of the very same numbers the same is found, near ties and all.
            own = Said(said.logits[row][None], said.deltas[row][None], said.defaults)
            found = small.detect(own, one)
            count = found.labels.shape[1]
            for name in ("boxes", "scores", "labels"):
                assert torch.equal(getattr(found, name)[0], getattr(whole, name)[row, :count])
    assert (whole.scores[:, :-1] >= whole.scores[:, 1:]).all()


def test_detections_by_hand():
    """Likelier than 0.01, the best of two that overlap, none of a class's 401st best and on."""
    defaults = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]])
    logits = torch.tensor([[[0.0, 2, -9], [0, 3, -9], [9, 0, -9]]])
    model, said = said_of(defaults, logits)
    images = images_of(torch.zeros(1, 3, 55, 120))
    found = model.detect(said, images)
    assert found.labels.tolist() == [[0]]
    assert found.boxes.tolist() == [[[1, 0, 11, 10]]]
    likely = logits.softmax(2)[0, 1, 1].item()
    assert found.scores.tolist() == [[pytest.approx(likely)]]
    model.rules = Rules(score=0.0, candidates=1)
    found = model.detect(said, images)
    assert found.labels.tolist() == [[0, 1]]
    model.rules = Rules(score=1e-4, detections=2)
    found = model.detect(said, images)
    assert found.boxes.tolist() == [[[1, 0, 11, 10], [50, 50, 60, 55]]]  # cut off at the border


def published(model: SSDVGG, categories: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Weights as torchvision's file has them, of seven categories, from 300 pixels on."""
    state = {name: torch.randn_like(weight) for name, weight in model.state_dict().items()}
    monkeypatch.setattr(published_detectors, "published_weights", lambda entry: state)
    names = ["__background__", *"abcdefghijk"][:categories]
    entry = SimpleNamespace(meta={"categories": names})
    monkeypatch.setattr(published_detectors, "entry_of", lambda *_: entry)
    return state


def test_published_weights_load_by_the_names_of_classes(monkeypatch):
    source = SSDVGG(3, 4, (300, 300))
    state = published(source, 5, monkeypatch)
    prefix = "head.classification_head.module_list.0"
    whole = SSDVGG(3, 4, (300, 300), weights="COCO_V1")
    part = SSDVGG(1, 2, (300, 300), weights="COCO_V1", classes=("d", "b"))
    other = SSDVGG(3, 4, (300, 300), weights="COCO_V1", classes=("a", "b", "c", "x"))
    first = "backbone.features.0."
    for name, value in whole.state_dict().items():
        assert torch.equal(value, state[name]) == (not name.startswith(first)), name
    rows = part.state_dict()[f"{prefix}.bias"].view(4, 3)
    assert torch.equal(rows, state[f"{prefix}.bias"].view(4, 5)[:, [0, 4, 2]])
    grey = part.state_dict()[f"{first}weight"]
    torch.testing.assert_close(grey, whole.state_dict()[f"{first}weight"].sum(1, keepdim=True))
    assert whole.rebuilt == part.rebuilt == ()
    assert other.rebuilt == tuple(f"head.classification_head.module_list.{i}" for i in range(6))
    assert not torch.equal(other.state_dict()[f"{prefix}.bias"], state[f"{prefix}.bias"])
    box = "head.regression_head.module_list.0.bias"
    assert torch.equal(other.state_dict()[box], state[box])
    with pytest.raises(ValueError, match="published weights are of an input of 300 x 300"):
        SSDVGG(3, 4, (128, 128), weights="COCO_V1")
    with pytest.raises(ValueError, match="published weights are of the scales"):
        SSDVGG(3, 4, (300, 300), scale_first=0.1, weights="COCO_V1")


@pytest.mark.parametrize(("size", "least"), [(64, 12), (150, 140), (300, 268), (512, 268)])
def test_images_smaller_than_in_training_are_filled_up(size, least):
    """To the smallest from which no map vanishes: one pixel less and a convolution refuses."""
    with torch.device("meta"):
        model = SSDVGG(1, K, (size, size))
        small = model.features(torch.zeros(1, 1, 9, least + 30))
        filled = model.features(torch.zeros(1, 1, least, least + 30))
        assert small.defaults.shape == filled.defaults.shape
        assert small.logits.shape == (1, len(filled.defaults), K + 1)
        with pytest.raises(RuntimeError, match=r"Kernel size|Output size"):
            model.backbone(torch.zeros(1, 1, least - 1, least + 30))


def test_first_convolution_sees_what_it_was_trained_on():
    """Pixels from 0 to 255 less VGG's mean, or pixels as here: the same away from the border."""
    layer = torch.nn.Conv2d(3, 8, 3, padding=1)
    state = dict(layer.state_dict())
    own = torch.nn.Conv2d(3, 8, 3, padding=1)
    published_detectors.adapt_pixels(state, own.state_dict(), CAFFE)
    own.load_state_dict(state)
    raw = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    theirs = raw * 255 - torch.tensor(CAFFE[0])[:, None, None] * 255
    mean, std = (torch.tensor(part)[:, None, None] for part in published_detectors.HERE)
    with torch.no_grad():
        expected, found = layer(theirs), own((raw - mean) / std)
    torch.testing.assert_close(found[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])
    torch.testing.assert_close(found, expected, rtol=0, atol=2.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"score": 1.0}, "score must be from 0 to below 1, got 1.0"),
        ({"overlap": 0.0}, "overlap must be above 0 and at most 1, got 0.0"),
        ({"negatives": 0.0}, "negatives must be above 0, got 0.0"),
        ({"detections": 0}, "detections must be at least 1, got 0"),
        ({"scale_min": 0.05}, "scales must be 0 < scale_first <= scale_min <= scale_max, got"),
    ],
)
def test_refuses_numbers_out_of_range(values, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        SSD(ResNet(18), K, (SIDE, SIDE), **values)


def test_refuses():
    with pytest.raises(ValueError, match="needs images of at least 16 x 16, got 8 x 300"):
        SSDVGG(3, K, (8, 300))
    with pytest.raises(ValueError, match="set backbone_weights to null"):
        SSDVGG(3, K, (300, 300), weights="COCO_V1", backbone_weights="IMAGENET1K_V1")
    with torch.device("meta"), pytest.raises(ValueError, match=r'one of COCO_V1, .*, got "VOC"'):
        SSDVGG(3, K, (300, 300), weights="VOC")


@pytest.mark.slow
def test_learns_eight_images_by_heart():
    """AP50 by a plain reading: each box found once, first, and nothing likely besides."""
    torch.manual_seed(0)
    model = SSD(ResNet(18), 2, (SIDE, SIDE))
    corner = torch.rand(8, 1, 2) * 50
    boxes = torch.cat([corner, corner + 20 + 20 * torch.rand(8, 1, 2)], 2).round()
    labels = torch.arange(8)[:, None] % 2
    pixels = 0.1 * noise(8, 3, SIDE, SIDE)
    for image, ((left, top, right, bottom),) in enumerate(boxes.int().tolist()):
        pixels[image, labels[image], top:bottom, left:right] += 2
    images = images_of(pixels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    targets = Targets(torch.arange(8), boxes=boxes, labels=labels)
    for _ in range(60):
        optimizer.zero_grad()
        total(model.train().loss(images, targets)).backward()
        optimizer.step()
    with torch.no_grad():
        found = model.eval().predict(images)
    assert found.boxes is not None
    assert found.scores is not None
    assert found.labels is not None
    for image in range(8):
        assert found.labels[image, 0] == labels[image, 0]
        assert box_iou(found.boxes[image, :1], boxes[image]).item() > 0.5
        assert found.scores[image, 0] > 0.5
        assert (found.scores[image, 1:] < 0.5).all()
