"""What the task record of classify draws and says, by hand-made batches."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from cnnctl.data.base import ArrayDataset
from cnnctl.drawing import pictures
from cnnctl.errors import UserError
from cnnctl.models.base import ClassificationModel
from cnnctl.ops.views import Views
from cnnctl.structures import Batch, Images, Predictions, Targets
from cnnctl.tasks import classify as tasks

CLASSES = ("cat", "dog", "owl")
TASK = tasks.classify()


class Three(ArrayDataset):
    classes = CLASSES
    mean, std = (0.5,), (0.25,)


@pytest.fixture
def data() -> Three:
    pixels = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 1, 4, 4) * 40
    return Three(pixels.contiguous(), torch.tensor([0, 1, 2, 0, 1, 2]))


def batch_of(data: Three, chosen: slice, label=None) -> Batch:
    pixels = (data.pixels[chosen].float() / 255 - 0.5) / 0.25
    ids = torch.arange(6)[chosen]
    targets = Targets(ids, label=data.labels[chosen] if label is None else label)
    return Batch(Images(pixels, [(4, 4)] * len(ids), [(4, 4)] * len(ids)), targets)


def predictions(*rows: tuple[float, ...]) -> Predictions:
    return Predictions(log_probs=torch.tensor(rows).log())


def count(picture, colour) -> int:
    return int((picture == torch.tensor(colour, dtype=torch.uint8)).all(2).sum())


SAID = (
    (0.9, 0.1, 0.0),  # cat, right
    (0.1, 0.8, 0.1),  # dog, right
    (0.7, 0.2, 0.1),  # owl, wrong
    (0.3, 0.4, 0.3),  # cat, wrong
    (0.2, 0.2, 0.6),  # dog, wrong
    (0.1, 0.2, 0.7),  # owl, right
)


def test_training_batch(data):
    batch = batch_of(data, slice(0, 4))
    before = copy.deepcopy(batch)
    drawn = TASK.draw_batch(batch, data)
    assert list(drawn) == ["train/batch"]
    for grey in (40, 80, 120):
        assert count(drawn["train/batch"], (grey,) * 3) >= 128 * 128
    assert torch.equal(batch.images.pixels, before.images.pixels)
    assert vars(batch.targets).keys() == vars(before.targets).keys()
    assert str(batch.targets) == str(before.targets)


def test_training_batch_with_soft_labels_has_two_lines(data):
    hard = TASK.draw_batch(batch_of(data, slice(0, 2)), data)["train/batch"]
    soft = torch.tensor([[0.6, 0.4, 0.0], [0.0, 0.0, 1.0]])
    mixed = TASK.draw_batch(batch_of(data, slice(0, 2), soft), data)["train/batch"]
    assert mixed.shape[0] > hard.shape[0]


def test_evaluation(data):
    evaluator = TASK.evaluator(data)
    seen = []
    for chosen in (slice(0, 4), slice(4, 6)):
        batch, said = batch_of(data, chosen), predictions(*SAID[chosen])
        evaluator.update(said, batch.targets)
        seen.append((batch, said))
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    drawn = TASK.draw_evaluation(seen, evaluator, model, data)  # pyright: ignore
    assert list(drawn) == [
        *("val/predictions", "val/mistakes", "val/confusion"),
        *("val/class_accuracy", "weights/first_layer"),
    ]
    border = (128 + 10) ** 2 - 128**2
    right, wrong = (
        count(drawn["val/predictions"], colour) // border
        for colour in (pictures.RIGHT, pictures.WRONG)
    )
    assert (right, wrong) == (3, 3)  # text in the same colour adds less than one border


def test_mistakes_are_of_the_whole_split_the_worst_first(data):
    evaluator = TASK.evaluator(data)
    evaluator.update(predictions(*SAID), batch_of(data, slice(0, 6)).targets)
    picture = tasks._draw_mistakes(evaluator, data)
    assert picture is not None
    places = {
        index: int((picture == index * 40).all(2).sum(0).argmax())
        for index in (2, 3, 4)  # the wrong ones, by their grey
    }
    assert sorted(places, key=lambda index: places[index]) == [2, 4, 3]  # p = 0.1, 0.2, 0.3
    assert count(picture, (200, 200, 200)) < 128 * 128  # not one that was right


def test_no_mistakes_no_picture(data):
    evaluator = TASK.evaluator(data)
    evaluator.update(predictions(*SAID[:2]), batch_of(data, slice(0, 2)).targets)
    assert tasks._draw_mistakes(evaluator, data) is None


def test_a_constant_output_is_drawn_as_wrong(data):
    """Ties count against the network, in the pictures as in the metrics."""
    batch, third = batch_of(data, slice(0, 2)), 1 / 3
    picture = tasks._draw_predictions([(batch, predictions(*[(third,) * 3] * 2))], data)
    assert count(picture, pictures.RIGHT) == 0
    assert count(picture, pictures.WRONG) > 0


def test_description():
    first, second = TASK.describe(predictions(SAID[0], SAID[4]), CLASSES, 2)
    assert first["class"] == "cat"
    assert first["probability"] == pytest.approx(0.9)
    assert [row["class"] for row in first["top"]] == ["cat", "dog"]
    assert [row["probability"] for row in first["top"]] == pytest.approx([0.9, 0.1])
    assert second["class"] == second["top"][0]["class"] == "owl"
    assert TASK.headline(first) == "cat (90%)"


def test_description_of_fewer_classes_than_asked_for():
    (said,) = TASK.describe(predictions(SAID[0]), CLASSES, 100)
    assert [row["class"] for row in said["top"]] == ["cat", "dog", "owl"]


def test_annotation_is_the_image_and_the_five_best():
    names = [f"class {index}" for index in range(20)]
    (said,) = TASK.describe(Predictions(log_probs=torch.linspace(0, 3, 20)[None]), names, 20)
    image = torch.full((1, 4, 4), 99, dtype=torch.uint8)
    assert len(said["top"]) == 20
    said = {**said, "top": [{**row, "probability": 0.05} for row in said["top"]]}
    few = {**said, "top": said["top"][:5]}
    assert torch.equal(
        TASK.annotate(image, said, names, None), TASK.annotate(image, few, names, None)
    )


def test_places_of_a_map_are_described_by_their_best_class():
    scores = torch.tensor([[[0.1, 0.2, 0.9]], [[0.5, 0.1, 0.0]], [[0.4, 0.7, 0.1]]])  # (K, 1, 3)
    said = predictions(SAID[0])
    said.places = [scores]
    (described,) = TASK.describe(said, CLASSES, 1)
    assert described["place"].tolist() == [[1, 2, 0]]


class Fitted(ClassificationModel):
    """It has no parts by the names that slide."""

    trained_shape = (1, 8, 8)

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.mean((2, 3)).expand(-1, 3)


class Own(Fitted):
    def predict(self, images: Images) -> Predictions:
        return predictions(SAID[0])


@pytest.mark.parametrize(
    ("settings", "model", "field", "problem"),
    [
        ({"view": "ten_crop"}, Fitted, "task.view", "a mirror image of this data is of another"),
        ({"flip": True}, Fitted, "task.flip", "a mirror image of this data is of another class"),
        ({"view": "dense"}, Fitted, "task.view", "Fitted has no fully convolutional form"),
        ({"view": "dense"}, Own, "task.view", "Own has its own way to predict"),
        (
            {"view": "ten_crop", "flip": False, "scales": (0.8,)},
            *(Fitted, "task.scales", "0.8 gives images of 7 x 7, and the network sees 8 x 8"),
        ),
    ],
)
def test_what_cannot_be_tested_so_is_refused_before_the_first_step(settings, model, field, problem):
    facts = SimpleNamespace(mirror=False, size=(8, 8))
    with pytest.raises(UserError, match=problem) as caught:
        tasks.classify(**settings).prepare(model(), facts)
    assert caught.value.field == field
    assert caught.value.advice


def test_a_map_of_scores_is_not_scored(data):
    with pytest.raises(UserError, match="says no one class"):
        tasks.classify("dense", pool="none").evaluator(data)


def test_the_protocol_is_part_of_the_metrics_names(data):
    task = tasks.classify("ten_crop", scales=(1.0, 1.2))
    suffix = "10crop+x1+x1.2"
    assert task.best == f"top1@{suffix}"
    assert list(task.metrics) == [*(f"{n}@{suffix}" for n in ("top1", "top5", "nll")), "loss"]
    evaluator = task.evaluator(data)
    assert evaluator.names == (f"top1@{suffix}", f"nll@{suffix}", "loss")
    evaluator.update(predictions(*SAID), batch_of(data, slice(0, 6)).targets)
    assert evaluator.compute()[f"top1@{suffix}"] == 0.5
    model = Fitted()
    task.prepare(model, SimpleNamespace(mirror=True, size=None))
    assert model.testing == Views("ten_crop", scales=(1.0, 1.2), uniform=False)
    tasks.classify().prepare(model, SimpleNamespace(mirror=False, size=None))
