"""Mask R-CNN on a pyramid, against torchvision's with the same weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection import maskrcnn_resnet50_fpn, roi_heads
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import roi_align

from cnnctl.backbones.resnet import ResNet
from cnnctl.models import published_detectors
from cnnctl.models.detection import Truth, truth_of
from cnnctl.models.faster_rcnn import FasterRCNN
from cnnctl.models.instance import mask_loss, mask_targets
from cnnctl.models.mask_rcnn import MaskPredictor, MaskRCNN
from cnnctl.models.regions import Regions
from cnnctl.ops.masks import Masks, cropped, pack
from cnnctl.ops.run_lengths import decode, encode
from cnnctl.structures import Batch, Images, Targets, collate

ALL = 10**6  # more than there are: nothing is left to chance
SIZE = (96, 128)
PLACES = [
    [(10, 20, 50, 60), (30, 30, 100, 90)],
    [(5, 5, 35, 29), (60, 3, 90, 80), (12, 40, 77, 93)],
]
LABELS = [[1, 4], [0, 6, 3]]


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def images_of(pixels: Tensor) -> Images:
    sizes = [(pixels.shape[2], pixels.shape[3])] * len(pixels)
    return Images(pixels, sizes, list(sizes))


def blobs(places: list[tuple[int, int, int, int]]) -> list[Tensor]:
    """Ellipses with holes."""
    masks = []
    y, x = torch.arange(SIZE[0])[:, None] + 0.5, torch.arange(SIZE[1]) + 0.5
    for x1, y1, x2, y2 in places:
        across, down = (2 * x - x1 - x2) / (x2 - x1), (2 * y - y1 - y2) / (y2 - y1)
        distance = across**2 + down**2
        masks.append((distance < 1) & (distance > 0.2))
    return masks


def truth_of_masks(masks: list[Tensor], labels: list[int]) -> dict[str, Tensor]:
    crops, frames = zip(*(cropped(mask) for mask in masks), strict=True)
    bits, where = pack(crops)
    boxes = torch.stack(frames)
    none = torch.zeros(len(masks), dtype=torch.bool)
    return {
        **{"boxes": boxes, "labels": torch.tensor(labels), "crowd": none, "difficult": none},
        **{"frames": boxes.clone(), "crops": where, "bits": bits},
    }


def batch() -> tuple[Batch, list[list[Tensor]]]:
    """Noise with objects, and the dense masks."""
    masks = [blobs(places) for places in PLACES]
    truth = [truth_of_masks(*pair) for pair in zip(masks, LABELS, strict=True)]
    pixels = noise(2, 3, *SIZE)
    made = collate([(i, pixels[i], one) for i, one in enumerate(truth)])
    return made, masks


def without_objects(rows: int, masks: bool = True) -> Targets:
    targets = Targets(
        torch.arange(2), boxes=torch.zeros(2, rows, 4), labels=torch.full((2, rows), -1)
    )
    if masks:
        targets.frames, targets.bits = torch.zeros(2, rows, 4), torch.zeros(2, 0).byte()
        targets.crops = torch.zeros(2, rows, 3).long()
    return targets


def decided(network: Any) -> None:
    """Random weights with which some scores are high, and no two alike."""
    torch.manual_seed(3)
    for layer in network.rpn.head.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    network.rpn.head.bbox_pred.weight.data.mul_(0.05)
    heads = network.roi_heads.state_dict()
    heads["box_predictor.cls_score.weight"].normal_(std=1.0)
    heads["box_predictor.bbox_pred.weight"].normal_(std=0.3)


@pytest.fixture(scope="module")
def pair() -> tuple[MaskRCNN, Any]:
    """Ours and torchvision's with the same weights."""
    torch.manual_seed(0)
    layers = {f"layer{i + 1}": str(i) for i in range(4)}
    body = BackboneWithFPN(resnet18(), layers, [64, 128, 256, 512], 32)
    theirs = TorchvisionMaskRCNN(
        body,
        min_size=SIZE[0],
        max_size=SIZE[1],
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        rpn_anchor_generator=AnchorGenerator(
            tuple((8 * 2**i,) for i in range(2, 7)), ((0.5, 1.0, 2.0),) * 5
        ),
        box_head=TwoMLPHead(32 * 49, 24),
        box_predictor=FastRCNNPredictor(24, 8),
        mask_head=MaskRCNNHeads(32, (16, 16), 1),
        mask_predictor=MaskRCNNPredictor(16, 16, 8),
        rpn_batch_size_per_image=ALL,
        box_batch_size_per_image=ALL,
        rpn_pre_nms_top_n_train=400,
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_train=200,
        rpn_post_nms_top_n_test=100,
    )
    decided(theirs)
    ours = MaskRCNN(
        7,
        ResNet(18),
        SIZE,
        width=32,
        hidden=24,
        anchor_scale=8,
        regions=ALL,
        proposals_train=200,
        proposals_test=100,
        mask_width=16,
        mask_convs=2,
        mask_regions=ALL,
    )
    ours.rpn.settings = replace(ours.rpn.settings, anchors=ALL)
    ours.load_state_dict(theirs.state_dict())  # strictly
    return ours.eval(), theirs.eval()


def small(**options: Any) -> MaskRCNN:
    torch.manual_seed(0)
    numbers = {"width": 16, "hidden": 24, "regions": 32, "mask_width": 8}
    return MaskRCNN(7, ResNet(18), (96, 96), **{**numbers, **options})


@pytest.fixture(scope="module")
def narrow() -> MaskRCNN:
    return small()


def test_names_of_weights_are_torchvisions():
    with torch.device("meta"):
        theirs = maskrcnn_resnet50_fpn(weights_backbone=None, num_classes=10)
        ours = MaskRCNN(9, ResNet(50), (800, 1333))
    shapes = [
        {name: value.shape for name, value in model.state_dict().items()}
        for model in (theirs, ours)
    ]
    assert shapes[0] == shapes[1]


def test_detections_and_masks_are_torchvisions(pair, monkeypatch):
    """Its masks as they are before they are pasted."""
    ours, theirs = pair
    pixels = noise(2, 3, *SIZE)
    monkeypatch.setattr(
        theirs.transform, "postprocess", lambda result, *sizes: result, raising=True
    )
    with torch.no_grad():
        expected = theirs(list(pixels))
        found = ours.detect(ours.features(pixels), images_of(pixels))
    for row, wanted in enumerate(expected):
        count = len(wanted["labels"])
        assert count > 20
        assert int((found.labels[row] >= 0).sum()) == count
        assert found.labels[row, :count].tolist() == (wanted["labels"] - 1).tolist()
        for ours_, theirs_, tolerance in (
            (found.scores, wanted["scores"], 1e-5),
            (found.boxes, wanted["boxes"], 1e-3),
            (found.masks, wanted["masks"][:, 0], 1e-4),
        ):
            torch.testing.assert_close(ours_[row, :count], theirs_, rtol=1e-4, atol=tolerance)
        assert wanted["masks"].std() > 0.1
        assert not found.masks[row, count:].any()


def test_losses_are_torchvisions(pair, monkeypatch):
    """With its targets read as ours are, a pixel's centre at a half."""
    ours, theirs = pair

    def project(masks: Tensor, boxes: Tensor, rows: Tensor, side: int) -> Tensor:
        regions = torch.cat([rows[:, None].to(boxes), boxes], 1)
        return roi_align(masks[:, None].to(boxes), regions, side, 1.0, 2, aligned=True)[:, 0]

    monkeypatch.setattr(roi_heads, "project_masks_on_boxes", project)
    made, masks = batch()
    assert made.targets.boxes is not None
    assert made.targets.labels is not None
    truth = [
        {"boxes": boxes[labels >= 0], "labels": labels[labels >= 0] + 1, "masks": torch.stack(own)}
        for boxes, labels, own in zip(made.targets.boxes, made.targets.labels, masks, strict=True)
    ]
    theirs.rpn.train()
    theirs.roi_heads.train()
    ours.train().backbone.eval()
    with torch.no_grad():
        pixels, sizes = made.images.pixels, made.images.sizes
        maps = theirs.backbone(pixels)
        proposals, first = theirs.rpn(ImageList(pixels, sizes), maps, truth)
        _, second = theirs.roi_heads(maps, proposals, sizes, truth)
        losses = ours.loss(made.images, made.targets)
    ours.eval()
    theirs.eval()
    expected = {
        "rpn_object": first["loss_objectness"],
        "rpn_box": first["loss_rpn_box_reg"],
        "class": second["loss_classifier"],
        "box": second["loss_box_reg"],
        "mask": second["loss_mask"],
    }
    assert min(expected.values()) > 1e-3
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        # Ours shows nothing beyond a true box, where between two pixels some is left.
        tolerance = 2e-3 if name == "mask" else 1e-4
        torch.testing.assert_close(loss, expected[name], rtol=tolerance, atol=1e-6)


def test_boxes_are_faster_rcnns():
    """The same losses and detections as without masks, from the same weights and seed."""
    ours = small(mask_regions=ALL)
    plain = FasterRCNN(7, ResNet(18), (96, 96), width=16, hidden=24, regions=32)
    plain.load_state_dict(ours.state_dict(), strict=False)
    made, _ = batch()
    losses, found = [], []
    for model in (ours, plain):
        model.train()
        torch.manual_seed(1)
        losses.append(model.loss(made.images, made.targets))
        model.eval()
        with torch.no_grad():
            found.append(model.predict(made.images))
    assert losses[0].keys() - losses[1].keys() == {"mask"}
    for name, loss in losses[1].items():
        assert torch.equal(loss, losses[0][name]), name
    for name in ("boxes", "scores", "labels"):
        assert torch.equal(getattr(found[0], name), getattr(found[1], name)), name


def test_targets_by_hand():
    """The upper half of a true box of 8 x 8, of which a window has cut off the left quarter."""
    mask = torch.zeros(12, 12, dtype=torch.bool)
    mask[2:6, 2:10] = True
    made = collate([(0, torch.zeros(3, 12, 12), truth_of_masks([mask], [0]))])
    targets = made.targets
    assert targets.boxes is not None
    targets.boxes = torch.tensor([[[4.0, 2, 10, 10]]])
    truth = ours_truth(made)
    boxes = torch.tensor([[2.0, 2, 10, 10], [2, 2, 10, 10], [4, 4, 8, 8]])
    nothing = torch.zeros(3, 4)
    owner, labels = torch.tensor([0, -1, 0]), torch.tensor([0, 7, 0])
    regions = Regions(boxes, torch.zeros(3).long(), labels, owner, nothing)
    rows, wanted = mask_targets(regions, truth, 4)
    assert rows.tolist() == [0, 2]
    assert wanted[0].tolist() == [[0, 1, 1, 1], [0, 1, 1, 1], [0] * 4, [0] * 4]
    assert wanted[1].tolist() == [[1] * 4, [0.875] * 4, [0.125] * 4, [0] * 4]


def test_what_belongs_to_nobody_is_not_learnt():
    """VOC's borders: here the lower half of a box whose upper right quarter is the object."""
    whole = torch.ones(4, 4, dtype=torch.bool)
    bits, crops = pack([whole, torch.ones(4, 8, dtype=torch.bool)])
    corners = torch.tensor([[[6.0, 2, 10, 6]]])
    void = torch.tensor([[2.0, 6, 10, 10]])
    masks = Masks(bits[None], corners, crops[None, :1], void, crops[None, 1])
    box = torch.tensor([[2.0, 2, 10, 10]])
    truth = Truth(box[None], torch.tensor([[0]]), masks)
    zero = torch.zeros(1).long()
    rows, wanted = mask_targets(Regions(box, zero, zero, zero, box), truth, 4)
    assert rows.tolist() == [0]
    assert wanted[0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [-1] * 4, [-1] * 4]
    right = (wanted > 0).float() * 40 - 20
    right[:, 2:] = 7  # whatever
    assert mask_loss(right, wanted) < 1e-6
    assert mask_loss(right, torch.full_like(wanted, -1)) == 0


def ours_truth(made: Batch) -> Truth:
    return truth_of(made.images, made.targets)


def test_some_regions_of_each_image():
    made, _ = batch()
    truth = ours_truth(made)
    image = torch.tensor([0] * 6 + [1] * 6)
    owner = torch.tensor([0, 1, -1, 0, 1, 0, 2, 1, -2, -1, -1, -1])
    boxes = truth.boxes[image, owner.clamp(min=0)]
    regions = Regions(boxes, image, truth.labels[image, owner.clamp(min=0)], owner, boxes)
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        rows, wanted = mask_targets(regions, truth, 7, most=3)
        assert len(rows) == len(wanted) == 5
        assert image[rows].sum() == 2
        assert (owner[rows] >= 0).all()
        seen |= set(rows.tolist())
    assert seen == {0, 1, 3, 4, 5, 6, 7}


def test_an_object_without_pixels_is_not_learnt():
    made, _ = batch()
    assert made.targets.crops is not None
    made.targets.crops[:, 0] = 0
    truth = ours_truth(made)
    owner = torch.tensor([0, 1, 0])
    regions = Regions(truth.boxes[0, owner], owner * 0, owner, owner, truth.boxes[0, owner])
    rows, _ = mask_targets(regions, truth, 7)
    assert rows.tolist() == [1]


@pytest.mark.parametrize("case", [(3, True), (0, True), (3, False)])
def test_without_an_object(narrow, case):
    """Nor without masks: the loss is 0, and all that is trained has a gradient."""
    model = narrow.train()
    model.zero_grad()
    losses = model.loss(images_of(noise(2, 3, 64, 64)), without_objects(*case))
    assert losses["mask"] == 0
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_every_parameter_learns():
    """In bfloat16 too, with losses in float32."""
    model = small(class_agnostic=True).train().to(memory_format=torch.channels_last)
    made, _ = batch()
    pixels = made.images.pixels.contiguous(memory_format=torch.channels_last)
    images = replace(made.images, pixels=pixels)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.loss(images, made.targets)
        empty = model.loss(images, without_objects(0))
    assert losses["mask"].dtype == torch.float32
    assert losses["mask"].item() == pytest.approx(0.693, abs=0.02)  # a half everywhere
    assert empty["mask"] == 0
    torch.stack([*losses.values(), empty["mask"]]).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_masks_of_one_class_or_of_all():
    """Two regions alike but for their class; the output of background is nobody's."""
    regions = torch.tensor([[10.0, 10, 60, 60]] * 3), torch.zeros(3).long(), torch.arange(3)
    for agnostic, outputs in ((False, 8), (True, 1)):
        model = small(class_agnostic=agnostic).eval()
        weight = model.state_dict()["roi_heads.mask_predictor.mask_fcn_logits.weight"]
        assert weight.shape == (outputs, 8, 1, 1)
        with torch.no_grad():
            weight.normal_()
            features = model.features(noise(1, 3, 96, 96))
            first, second, _ = before = model.mask_logits(features, *regions)
            assert torch.equal(first, second) == agnostic
            weight[0] += 1
            assert torch.equal(before, model.mask_logits(features, *regions)) != agnostic


def test_a_predictor_is_two_convolutions():
    predictor, hidden = MaskPredictor(5, 6, 4), noise(7, 5, 3, 2)
    output = torch.tensor([3, 0, 0, 2, 1, 3, 3])
    for parameter in predictor.parameters():
        nn.init.normal_(parameter)
    first, second = predictor.conv5_mask, predictor.mask_fcn_logits
    larger = nn.functional.conv_transpose2d(hidden, first.weight, first.bias, 2).relu()
    whole = nn.functional.conv2d(larger, second.weight, second.bias)
    expected = whole[torch.arange(7), output]
    torch.testing.assert_close(predictor(hidden, output), expected, rtol=1e-4, atol=1e-4)
    assert predictor(hidden[:0], output[:0]).shape == (0, 6, 4)


def test_masks_are_in_original_pixels(pair):
    """Twice as large as they were seen, one image of another size; the mask is in its box."""
    ours, _ = pair
    pixels = noise(2, 3, *SIZE)
    originals = [(2 * SIZE[0], 2 * SIZE[1]), (50, 70)]
    images = Images(pixels, [SIZE, (90, 100)], originals)
    with torch.no_grad():
        said = ours.predict(images)
        single = ours.predict(Images(pixels[:1], [SIZE], originals[:1]))
    assert said.masks is not None
    assert said.labels is not None
    assert said.boxes is not None
    assert said.sizes == originals
    assert [len(own) for own in said.masks] == (said.labels >= 0).sum(1).tolist()
    assert min(len(own) for own in said.masks) > 20
    assert said.masks[0] == (single.masks or [])[0]
    filled = 0
    for row, size in enumerate(originals):
        for counts, box in zip(said.masks[row], said.boxes[row], strict=False):
            mask = decode(counts, size)
            x1, y1, x2, y2 = box.round().long().tolist()
            assert encode(mask[y1:y2, x1:x2], x1, y1, size) == counts
            filled += int(mask.sum())
    assert filled > 1000


def test_without_a_detection(narrow, monkeypatch):
    """Nothing is found, and there are no masks."""
    monkeypatch.setattr(narrow, "score", 1.0)
    with torch.no_grad():
        said = narrow.eval().predict(images_of(noise(2, 3, 64, 64)))
    assert said.masks == [[], []]


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        ((800, 1333), {}, (256, 1024, 512, 256, 4, True)),
        ((255, 600), {}, (128, 256, 64, 64, 2, False)),
        ((96, 96), {"mask_convs": 3, "mask_regions": ALL}, (128, 256, 64, 64, 3, True)),
    ],
)
def test_numbers_of_small_and_of_large_images(size, options, expected):
    with torch.device("meta"):
        model = MaskRCNN(3, ResNet(18), size, **options)
    state = model.state_dict()
    convs = [name for name in state if "mask_head" in name and name.endswith("weight")]
    numbers = (
        *(model.backbone.width, state["roi_heads.box_head.fc6.bias"].shape[0], model.regions),
        *(state[convs[0]].shape[0], len(convs), model.mask_regions >= model.regions),
    )
    assert numbers == expected


def published(device: str) -> dict[str, Tensor]:
    """As torchvision's file has them: 91 categories, older names, fixed normalisation."""
    torch.manual_seed(0)
    with torch.device(device):
        model = maskrcnn_resnet50_fpn(weights_backbone=None, num_classes=91)
    state = {}
    for name, value in model.state_dict().items():
        name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        for i in range(4):
            name = name.replace(f"mask_head.{i}.0.", f"mask_head.mask_fcn{i + 1}.")
            for kind in ("inner", "layer"):
                name = name.replace(f"{kind}_blocks.{i}.0.", f"{kind}_blocks.{i}.")
        if not name.endswith("num_batches_tracked"):
            state[name] = value
    return state


@pytest.fixture
def hub(monkeypatch):
    """Weights without values."""
    state = published("meta")
    monkeypatch.setattr(published_detectors, "published_weights", lambda entry: state)


@pytest.mark.slow
def test_published_rows_are_found_by_name(monkeypatch):
    """Person and cat are categories 1 and 17 of COCO's 91; background stays the first."""
    file = published("cpu")
    monkeypatch.setattr(published_detectors, "published_weights", lambda entry: file)
    model = MaskRCNN(2, ResNet(50, 1), (96, 96), weights="COCO_V1", classes=("cat", "person"))
    assert model.rebuilt == ()
    state, name = model.state_dict(), "roi_heads.mask_predictor.mask_fcn_logits"
    for kind in ("weight", "bias"):
        torch.testing.assert_close(state[f"{name}.{kind}"], file[f"{name}.{kind}"][[0, 17, 1]])
    torch.testing.assert_close(
        state["roi_heads.mask_head.2.0.weight"], file["roi_heads.mask_head.mask_fcn3.weight"]
    )


@pytest.mark.parametrize(
    ("k", "classes", "agnostic", "rebuilt"),
    [(90, (), False, 0), (1, ("comet",), False, 3), (1, ("comet",), True, 3)],
)
def test_layers_that_are_rebuilt(hub, k, classes, agnostic, rebuilt):
    """One mask for all classes can be learnt anew, where it cannot be taken."""
    options = {"class_agnostic": agnostic, "weights": "COCO_V1", "classes": classes}
    with torch.device("meta"):
        model = MaskRCNN(k, ResNet(50), (800, 800), **options)
    names = ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_predictor.mask_fcn_logits")
    assert model.rebuilt == tuple(f"roi_heads.{name}" for name in names)[:rebuilt]


@pytest.mark.parametrize(
    "options", [{"mask_width": 64}, {"mask_convs": 5}, {"class_agnostic": True}]
)
def test_published_weights_that_do_not_fit(hub, options):
    with torch.device("meta"), pytest.raises(ValueError, match="mask_convs 4 and class_agnostic"):
        MaskRCNN(90, ResNet(50), (800, 800), weights="COCO_V1", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_width": 0}, "mask_width must be at least 1, got 0"),
        ({"mask_convs": 0}, "mask_convs must be at least 1, got 0"),
        ({"mask_regions": 0}, "mask_regions must be at least 1, got 0"),
        ({"hidden": 0}, "hidden must be at least 1, got 0"),
        ({"weights": "COCO_V9"}, 'weights must be null or one of COCO_V1, .*got "COCO_V9"'),
    ],
)
def test_refuses(options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        MaskRCNN(3, ResNet(18), (96, 96), **options)
