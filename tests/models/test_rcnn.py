"""R-CNN: what it is fine-tuned on, what each stage trains, what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou

from cnnctl.backbones import vgg
from cnnctl.backbones.alexnet import AlexNet
from cnnctl.backbones.base import Backbone
from cnnctl.backbones.plain import Plain
from cnnctl.backbones.resnet import ResNet
from cnnctl.backbones.vgg import VGG
from cnnctl.engine.given_weights import Given, take
from cnnctl.models import rcnn
from cnnctl.models.base import FitStage, GradientStage
from cnnctl.models.detection import truth_of
from cnnctl.models.feature_cache import features_folder
from cnnctl.models.rcnn import RCNN
from cnnctl.models.regions import proposed
from cnnctl.ops.clock import POST_PROCESSING, REGIONS, Clock
from cnnctl.ops.warped_crops import warped_crops
from cnnctl.structures import Batch, Images, Targets

K, SIZE = 3, (64, 64)
TRUTH = torch.tensor([[[10, 20, 50, 60], [0, 0, 0, 0]], [[5, 5, 25, 29], [40, 3, 64, 60]]]).float()
LABELS = torch.tensor([[1, -1], [0, 2]])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


class Small(Backbone):
    """One convolution to a map at stride 8."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 9, 8, 4)
        self.channels, self.strides = {"c3": 6}, {"c3": 8}

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return {"c3": self.conv(pixels).relu()}


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def some_proposals(count: int = 20) -> Tensor:
    """(2, count, 4), the first six near an object, of the second image three fewer."""
    corner = torch.rand(2, count, 2, generator=torch.Generator().manual_seed(2)) * 40
    side = torch.rand(2, count, 2, generator=torch.Generator().manual_seed(3)) * 16 + 8
    boxes = torch.cat([corner, corner + side], 2)
    boxes[:, :6] = TRUTH[:, :1] + torch.tensor([1.0, 0, 0, 1]) * torch.arange(6)[:, None]
    boxes[1, count - 3 :] = 0
    return boxes


def batch_of(proposals: Tensor, boxes: Tensor = TRUTH, labels: Tensor = LABELS) -> Batch:
    images = Images(noise(2, 1, *SIZE), [SIZE] * 2, [SIZE] * 2, proposals)
    return Batch(images, Targets(torch.arange(2), boxes=boxes, labels=labels))


def model_of(backbone: Backbone | None = None, **settings) -> RCNN:
    torch.manual_seed(0)
    own = {"map": "whole", "dense": (24,), "crops": 32}
    return RCNN(K, backbone or Small(), SIZE, **{**own, **settings})


def fitted(batch: Batch, **settings) -> RCNN:
    model = model_of(**settings).eval()
    with torch.no_grad():
        for stage in model.stages():
            if isinstance(stage, FitStage):
                stage.fit(iter([batch]))
    return model


@pytest.mark.filterwarnings("ignore:no true box")
def test_a_quarter_of_the_crops_are_objects():
    model, batch = model_of(crops=32), batch_of(some_proposals())
    torch.manual_seed(4)
    view = model.cut(batch)
    labels, image = view.targets.label, view.targets.image_id
    assert labels is not None
    assert view.images.pixels.shape == (32, 1, 32, 32)
    assert (labels < K).sum() == 8
    assert set(labels[image == 0].tolist()) <= {1, K}
    torch.manual_seed(4)
    truth = truth_of(batch.images, batch.targets)
    boxes, whose, again = model.sampled(*proposed(batch.images), truth, 32)
    assert again.equal(labels)
    for box, row, label in zip(boxes, whose, labels, strict=True):
        overlap = box_iou(box[None], TRUTH[row])[0].nan_to_num()
        expected = LABELS[row, overlap.argmax()] if overlap.max() >= 0.5 else K
        assert label == expected
    crops = warped_crops(batch.images.pixels, boxes, whose, 32)
    torch.testing.assert_close(view.images.pixels, crops)


def test_true_boxes_are_among_the_crops():
    proposals = torch.zeros(2, 1, 4)
    batch = batch_of(proposals)
    truth = truth_of(batch.images, batch.targets)
    boxes, image, labels = model_of().sampled(*proposed(batch.images), truth, 6)
    # three of them, a quarter of six is one: taken again until there are six
    assert len(boxes) == 6
    assert all((box == TRUTH[row]).all(1).any() for box, row in zip(boxes, image, strict=True))
    assert (labels < K).all()


def test_a_view_divides_as_its_batch_does():
    batch = batch_of(some_proposals())
    assert len(model_of(crops=31).cut(batch)) == 32


@pytest.mark.parametrize("proposals", [torch.zeros(2, 0, 4), torch.zeros(2, 4, 4)])
@pytest.mark.filterwarnings("ignore:no true box")
def test_no_proposals_and_no_objects(proposals):
    batch = batch_of(proposals, TRUTH[:, :0], LABELS[:, :0])
    model = fitted(batch)
    view = model.cut(batch)
    loss = model.crop_loss(view.images, view.targets)["class"]
    loss.backward()
    assert loss == 0
    losses, found = model.loss_and_predict(batch.images, batch.targets)
    assert losses["class"] == 0
    assert found.boxes is not None
    assert found.boxes.shape == (2, 0, 4)


def test_a_batch_without_regions_changes_no_statistics():
    model = RCNN(K, ResNet(18), SIZE, crops=8).train()
    batch = batch_of(torch.zeros(2, 4, 4), TRUTH[:, :0], LABELS[:, :0])
    batch.images.pixels = noise(2, 3, *SIZE)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    view = model.cut(batch)
    loss = model.crop_loss(view.images, view.targets)["class"]
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.network.parameters())
    assert model.loss(batch.images, batch.targets)["class"] == 0
    for name, value in model.state_dict().items():
        assert value.equal(before[name]), name


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, ["finetune", "svm", "boxes"]),
        ({"svm": False}, ["finetune", "boxes"]),
        ({"regress": False}, ["finetune", "svm"]),
        ({"svm": False, "regress": False}, ["finetune"]),
    ],
)
def test_its_stages(settings, names):
    stages = model_of(**settings).stages()
    assert [stage.name for stage in stages] == names
    assert [stage.evaluate for stage in stages] == [False] * (len(names) - 1) + [True]


@pytest.mark.filterwarnings("ignore:no true box")
def test_each_stage_changes_what_is_its_own():
    model, batch = model_of(), batch_of(some_proposals())
    first, svm, boxes = model.stages()
    assert isinstance(first, GradientStage)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in first.params()} == set(names.values())
    assert all(name.startswith("network.") for name in names.values())
    changed = [("planes", "biases", "solved"), ("regressors", "offsets")]
    model.eval()
    for stage, own in zip((svm, boxes), changed, strict=True):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        assert isinstance(stage, FitStage)
        stage.fit(iter([batch]))
        after = model.state_dict()
        moved = {name for name in before if not before[name].equal(after[name])}
        assert moved == {f"fitted.{name}" for name in own}
    assert list(features_folder().iterdir()) == []


@pytest.mark.filterwarnings("ignore:no true box")
def test_it_finds_what_it_was_solved_on():
    """Random features tell six boxes about an object from the rest, and correct them."""
    batch = batch_of(some_proposals())
    model = fitted(batch, C=1.0, ridge=0.01)
    with Clock() as clock:
        found = model.predict(batch.images)
    assert {REGIONS, POST_PROCESSING} <= set(clock.seconds)
    assert found.boxes is not None
    assert found.labels is not None
    assert found.labels[0, 0] == 1
    assert box_iou(found.boxes[0, :1], TRUTH[0, :1]) > 0.95
    assert found.labels[1, 0] in (0, 2)


@pytest.mark.filterwarnings("ignore:no true box")
def test_what_it_says_does_not_depend_on_the_batch_or_the_chunks(monkeypatch):
    batch = batch_of(some_proposals())
    model = fitted(batch)
    together = model.predict(batch.images)
    monkeypatch.setattr(rcnn, "AT_ONCE", 7 * 32**2)
    for row in range(2):
        alone = model.predict(batch.rows(slice(row, row + 1)).images)
        assert together.scores is not None
        assert alone.scores is not None
        count = alone.scores.shape[1]
        torch.testing.assert_close(
            alone.scores[0], together.scores[row, :count], rtol=1e-4, atol=1e-5
        )


def test_without_svms_and_before_them_it_is_the_softmax():
    batch = batch_of(some_proposals())
    before, without = model_of().eval(), model_of(svm=False, regress=False).eval()
    found, plain = before.predict(batch.images), without.predict(batch.images)
    assert found.scores is not None
    assert plain.scores is not None
    assert found.scores.equal(plain.scores)
    proposals, image = some_proposals()[0], torch.zeros(20, dtype=torch.int64)
    crops = warped_crops(batch.images.pixels, proposals, image, 32)
    said = F.softmax(without.network.cls_score(without.network(crops).named), 1)[:, :K]
    torch.testing.assert_close(plain.scores[0, 0], said.max())


def test_a_batch_in_other_pixels_is_the_same():
    """Truth and proposals are in original pixels, which are twice the input's."""
    batch, twice = batch_of(some_proposals()), batch_of(some_proposals() * 2, TRUTH * 2)
    twice.images.originals = [(128, 128)] * 2
    model = model_of(svm=False, regress=False).eval()
    torch.manual_seed(0)
    loss, found = model.loss_and_predict(batch.images, batch.targets)
    torch.manual_seed(0)
    same, doubled = model.loss_and_predict(twice.images, twice.targets)
    torch.testing.assert_close(loss, same)
    assert found.boxes is not None
    torch.testing.assert_close(found.boxes * 2, doubled.boxes)
    torch.manual_seed(0)
    view = model.cut(batch)
    torch.manual_seed(0)
    torch.testing.assert_close(view.images.pixels, model.cut(twice).images.pixels)


@pytest.mark.parametrize(
    ("backbone", "size", "width", "placed"),
    [
        (lambda: ResNet(18), (300, 400), 512, 512 * 4**2),  # the mean of a map of 7 x 7
        (lambda: VGG(16), (300, 400), 4096, 512 * 4**2),
        (lambda: AlexNet(), (300, 400), 4096, 9216),  # the paper's fc7 and pool5
        (lambda: Plain(18), (300, 400), 512, 512 * 4**2),
        (lambda: ResNet(18), (64, 64), 256, 128 * 4**2),  # c3 of 4 x 4
        (lambda: VGG(11), (64, 64), 256, 512 * 4**2),
    ],
)
def test_what_svms_and_regressors_see(backbone, size, width, placed):
    with torch.device("meta"):
        model = RCNN(K, backbone(), size)
        side = model.side
        assert side == (224 if size[0] > 256 else 32)
        said = model.network.eval()(torch.zeros(2, 3, side, side))
    assert said.named.shape == (2, width)
    assert said.placed.shape == (2, placed)
    assert model.fitted.widths == (width, placed)


@pytest.mark.slow
def test_published_dense_layers_see_the_map_as_they_were_trained():
    """AlexNet's own map of 6 x 6, fc6 and fc7, as torchvision puts them together."""
    torch.manual_seed(0)
    backbone = AlexNet()
    model = RCNN(K, backbone, (300, 400)).eval()
    crops = noise(1, 3, 224, 224)
    maps = backbone(crops)[backbone.deepest]
    assert maps.shape[2:] == (6, 6)
    dense = [layer for layer in model.network.top if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        said = model.network(crops)
        hidden = maps.flatten(1)
        for layer in dense:
            hidden = layer(hidden).relu()
    torch.testing.assert_close(said.named, hidden)
    torch.testing.assert_close(said.placed, maps.flatten(1))


def test_published_dense_layers_see_the_same_of_a_backbone_that_is_cut(monkeypatch):
    """The pooling at the end of VGG takes the largest, and is left out of what is cut at c4."""
    monkeypatch.setattr(vgg, "_FC", 8)
    backbone, said = VGG(11), []
    for at in ("whole", "c4"):
        torch.manual_seed(0)
        model = RCNN(K, backbone, (300, 400), map=at).eval()
        with torch.no_grad():
            said.append(model.network(noise(1, 3, 224, 224)).named)
    assert said[0].any()
    torch.testing.assert_close(*said)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"side": 0}, "side must be at least 1"),
        ({"crops": 0}, "crops must be at least 1"),
        ({"overlap": 1.5}, "overlap must be from 0 to 1"),
        ({"C": 0.0}, "C must be above 0"),
        ({"cache_gb": -1.0}, "cache_gb"),
        ({"fit_images": 0}, "fit_images must be at least 1"),
        ({"side": 4}, "needs images of at least 8"),
    ],
)
def test_numbers_out_of_range(settings, said):
    with torch.device("meta"), pytest.raises(ValueError, match=said):
        model_of(**settings)


@pytest.mark.parametrize(
    ("classes", "rows", "solved"),
    [
        (("a", "b", "c"), [1, 2, 3], True),
        (("c", "a", "b"), [3, 1, 2], True),  # by their names
        (("c", "x", "a"), [3, 0, 1], False),
        (("b", "x"), [2, 0], False),
        (("a", "b", "c", "x"), [1, 2, 3, 0], False),
        (("x", "y", "z"), [0, 0, 0], False),
    ],
)
def test_svms_and_regressors_of_given_weights_are_those_of_the_classes(classes, rows, solved):
    given = model_of()
    numbers = torch.tensor([1.0, 2, 3])
    given.fitted.planes += numbers[:, None]
    given.fitted.biases += numbers
    given.fitted.regressors += numbers[:, None, None]
    given.fitted.offsets += numbers[:, None]
    given.fitted.solved.fill_(True)
    torch.manual_seed(1)
    model = RCNN(len(classes), Small(), SIZE, map="whole", dense=(24,))
    file = Given(Path("x.pt"), given.state_dict(), ("a", "b", "c"), own=True)
    taken = take(model, file, classes, "weights")
    for name in ("planes", "biases", "regressors", "offsets"):
        found = model.fitted.get_buffer(name).reshape(len(classes), -1)
        assert found.unique(dim=1)[:, 0].tolist() == rows, name
    assert bool(model.fitted.solved) == solved
    assert ("fitted.solved" in taken.loaded) == solved
    assert ("fitted.solved" in taken.rebuilt) != solved
