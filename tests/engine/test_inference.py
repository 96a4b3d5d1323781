"""One evaluation: the same figures for any batch size, process count and kind of model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cnnctl.data.augmentations.base import Augmentation
from cnnctl.data.digits import Digits
from cnnctl.data.loaders import ResidentLoader, Share
from cnnctl.engine.distributed import Processes
from cnnctl.engine.inference import evaluate
from cnnctl.engine.machine import Machine
from cnnctl.metrics.classification import ClassificationEvaluator
from cnnctl.models.base import ClassificationModel

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


def test_no_images_no_figures(data):
    evaluator = ClassificationEvaluator(data.classes)
    assert evaluate(Net(), [], evaluator, MACHINE, Processes()) == {"loss": 0.0}
    assert evaluator.per_class() == {}
