"""One evaluation: the same figures for any batch size, process count and kind of model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from cnnctl.data.augmentations.base import Augmentation
from cnnctl.data.base import Dataset
from cnnctl.data.digits import Digits
from cnnctl.data.loaders import ResidentLoader, Share, StreamingLoader
from cnnctl.engine.distributed import Processes
from cnnctl.engine.inference import evaluate
from cnnctl.engine.machine import Machine
from cnnctl.metrics.classification import ClassificationEvaluator
from cnnctl.metrics.detection import METRICS, DetectionEvaluator
from cnnctl.models.base import ClassificationModel, Model
from cnnctl.structures import Predictions
from cnnctl.tasks.detect import detect

CPU = torch.device("cpu")
MACHINE = Machine(CPU, torch.float32, channels_last=False)


class Net(ClassificationModel):
    """With parts that behave otherwise in training."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 10)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        return self.net(pixels)


@pytest.fixture(scope="module")
def data() -> Digits:
    return Digits("val")


def loader(data: Digits, share: Share = Share()) -> ResidentLoader:  # noqa: B008  # frozen
    return ResidentLoader(data, Augmentation(10, False, (8, 8)), CPU, 0, share)


def score(model: Net, data: Digits, size: int) -> tuple[dict[str, float], ClassificationEvaluator]:
    evaluator = ClassificationEvaluator(data.classes)
    batches = loader(data).in_order(size)
    return evaluate(model, batches, evaluator, MACHINE, Processes()), evaluator


def test_figures_are_those_of_a_loop_by_hand(data):
    model = Net()
    metrics, evaluator = score(model, data, 100)
    model.eval()
    with torch.no_grad():
        pixels = torch.cat([batch.images.pixels for _, batch in loader(data).in_order(1000)])
        logits = model(pixels)
    losses = nn.functional.cross_entropy(logits, data.labels, reduction="none")
    right = logits.argmax(1) == data.labels
    assert metrics["top1"] == float(right.double().mean())
    assert metrics["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
    assert metrics["nll"] == pytest.approx(metrics["loss"], rel=1e-5)
    assert int(evaluator.confusion().sum()) == len(data) == 359


@pytest.mark.parametrize("size", [1, 7, 100, 359, 10_000])
def test_any_batch_size_counts_alike(size, data):
    model = Net()
    expected, one = score(model, data, 64)
    metrics, other = score(model, data, size)
    assert torch.equal(one.confusion(), other.confusion())
    assert one.per_class() == other.per_class()
    assert metrics["top1"] == expected["top1"]
    assert metrics["top5"] == expected["top5"]
    assert metrics["nll"] == pytest.approx(expected["nll"], rel=1e-6)


def test_dealt_out_the_figures_are_equal_to_the_last_digit(data):
    """Three shares scored one after another, and put together as the processes would."""
    model, size = Net(), 50
    expected, _ = score(model, data, size)
    parts = []
    for rank in range(3):
        evaluator = ClassificationEvaluator(data.classes)
        gathered: list = []

        class Recording(Processes):
            def gather(self, item, gathered=gathered):
                gathered.append(item)
                return [item]

        evaluate(
            model, loader(data, Share(rank, 3)).in_order(size), evaluator, MACHINE, Recording()
        )
        parts += gathered

    class Together(Processes):
        def gather(self, item):
            return [item, *parts[1:]]

    evaluator = ClassificationEvaluator(data.classes)
    metrics = evaluate(
        model, loader(data, Share(0, 3)).in_order(size), evaluator, MACHINE, Together()
    )
    assert metrics == expected


def test_the_model_is_left_as_it_was(data):
    model = Net().train()
    model.net[3].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    score(model, data, 100)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()
    score(model, data, 100)
    assert not model.training


class Scenes(Dataset):
    """Blank images with boxes on a grid so fine that float32 rounds it, and float64 does not."""

    fields = ("boxes",)
    classes = ("cat", "dog")
    channels, mean, std, size = 1, (0.5,), (0.25,), (32, 32)

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        image = np.sort(generator.integers(0, 8, 20))
        corner, side = generator.integers(4, 2**24, (2, 20, 2)) / 2**20
        boxes = np.concatenate([corner, corner + 4 * side], 1)
        none = np.zeros(20, bool)
        self.truth = {"image": image, "boxes": boxes, "labels": generator.integers(0, 2, 20)}
        self.truth |= {"crowd": none, "difficult": none, "area": (4 * side).prod(1)}
        # What was found covers so much of it that the area decides.
        self.found = boxes.copy()
        self.found[:, 2] = corner[:, 0] + 4 * side[:, 0] * generator.choice([0.5, 0.75, 1], 20)
        self.scores = generator.permutation(20) / 32

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int):
        own = self.truth["image"] == index
        target = {n: torch.from_numpy(c[own]) for n, c in self.truth.items() if n != "image"}
        for name in ("boxes", "area"):
            target[name] = target[name].float()
        return torch.zeros(1, 32, 32, dtype=torch.uint8), target

    def all_truth(self):
        return self.truth

    def fingerprint(self) -> str:
        return ""


class Recorded(Model):
    """Says what is in the record of a data set."""

    def __init__(self, data: Scenes) -> None:
        super().__init__()
        self.data = data

    def loss(self, images, targets):
        return {"none": torch.zeros(())}

    def predict(self, images):
        raise NotImplementedError

    def loss_and_predict(self, images, targets):
        data = self.data
        rows = [np.flatnonzero(data.truth["image"] == i) for i in targets.image_id.tolist()]
        rows = [own[np.argsort(-data.scores[own])] for own in rows]
        columns = [
            pad_sequence([torch.from_numpy(c[own]) for own in rows], True, outside)
            for c, outside in ((data.found, 0), (data.scores, 0), (data.truth["labels"], -1))
        ]
        boxes, scores, labels = columns
        found = Predictions(boxes=boxes, scores=scores, labels=labels)
        return self.loss(images, targets), found


def as_files(data: Scenes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotations and results as COCO's files have them."""

    def sides(boxes):
        return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()

    columns = (data.truth["image"].tolist(), data.truth["labels"].tolist())
    rows = [{"image_id": i, "category_id": k} for i, k in zip(*columns, strict=True)]
    there = zip(rows, sides(data.truth["boxes"]), data.truth["area"].tolist(), strict=True)
    found = zip(rows, sides(data.found), data.scores.tolist(), strict=True)
    annotations = {
        "images": [{"id": i} for i in range(8)],
        "categories": [{"id": 0}, {"id": 1}],
        "annotations": [
            {"id": n, **row, "bbox": box, "area": area, "iscrowd": 0}
            for n, (row, box, area) in enumerate(there, 1)
        ],
    }
    return annotations, [{**row, "bbox": box, "score": score} for row, box, score in found]


@pytest.mark.parametrize("size", [1, 3])
def test_boxes_are_scored_by_the_datas_own_truth(size, coco_api):
    """Of a model that says in float64 what is in a file, the figures are those of pycocotools."""
    data, task = Scenes(), detect()
    streaming = StreamingLoader(data, Augmentation(2, False, (32, 32)), CPU, 0, Share(), 0)
    evaluator = task.evaluator(data)
    batches = streaming.in_order(size)
    metrics = evaluate(Recorded(data), batches, evaluator, MACHINE, Processes())
    found = [metrics.get(name, -1) for name in METRICS[:12]]
    assert found == pytest.approx(coco_api(*as_files(data)), rel=0, abs=1e-12)
    rough = DetectionEvaluator(data.classes)
    again = evaluate(Recorded(data), streaming.in_order(size), rough, MACHINE, Processes())
    assert abs(again["coco_ap"] - metrics["coco_ap"]) > 0.01, "or the record is too easy"


def test_no_images_no_figures(data):
    evaluator = ClassificationEvaluator(data.classes)
    assert evaluate(Net(), [], evaluator, MACHINE, Processes()) == {"loss": 0.0}
    assert evaluator.per_class() == {}
