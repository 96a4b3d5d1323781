"""The argument of the R-CNN lineage, from the live networks: what each does less than the one
before, and what it keeps.

Facts of single parts are beside these: RoI pooling as a pyramid of one level and its fixed length
in tests/models/test_sppnet.py, projection by the receptive field's centre in
tests/ops/test_projection.py, SVMs against scikit-learn in tests/ops/test_svm_on_rows.py and
test_hard_negatives.py, ridge regression against its closed form in tests/ops/test_box_ridge.py,
boxes of selective search in tests/contracts/test_every_proposal_method.py.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cnnctl.backbones.resnet import ResNet
from cnnctl.backbones.vgg import VGG
from cnnctl.commands.jobs import Job, Result
from cnnctl.commands.time_parts import show_time_parts
from cnnctl.engine import checkpoint
from cnnctl.engine.loop import Loop
from cnnctl.models.detection import DetectionModel
from cnnctl.models.fast_rcnn import FastRCNN
from cnnctl.models.faster_rcnn_c4 import FasterRCNNC4
from cnnctl.models.fitted_regions import FittedRegions
from cnnctl.models.rcnn import RCNN
from cnnctl.models.sppnet import SPPNet
from cnnctl.structures import Images

K, META = 20, torch.device("meta")
CHAIN = (RCNN, SPPNet, FastRCNN, FasterRCNNC4)


def image_of(proposals: Tensor, size: tuple[int, int]) -> Images:
    pixels = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    return Images(pixels.to(proposals.device), [size], [size], proposals[None])


def flops(compute: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        compute()
    return counter.get_total_flops()


class Told:
    """A console that keeps what it is told."""

    def __init__(self) -> None:
        self.tables: dict[str, list[list[str]]] = {}

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        self.tables[title] = rows

    def say(self, line: str) -> None:
        pass


def test_a_sweep_of_the_chain_tells_the_published_times_and_their_ratios(tmp_path):
    """In the table that a sweep ends with: jobs of 0.2 s an image, of which 0.1 are proposals."""
    summary = {"monitor": "ap50", "test": {"ap50": 0.5}}
    summary["one_image"] = {"median": 200.0, "parts": {"proposals": 100.0, "regions": 100.0}}
    results = []
    for number, model in enumerate(CHAIN):
        config = {"model": {"_target_": f"{model.__module__}.{model.__name__}"}}
        job = Job(f"{number}", {"model": model.__name__}, [], config, {"model": model.__name__})
        results.append(Result(job, "done", summary))
    told = Told()
    show_time_parts(told, results, tmp_path)  # pyright: ignore[reportArgumentType]
    rows = told.tables["times as fast as RCNN, and what the papers say"]
    assert [[name, *papers] for name, _, *papers in rows] == [
        ["RCNN", "1x", "1x", "1x", "49 (47 without)"],
        ["SPPNet", "11x", "1x", "20x", "4.3 (2.3 without)"],
        ["FastRCNN", "21x", "1x", "147x", "2.3 (0.32 without)"],
        ["FasterRCNNC4", "247x", "1x", "250x", "0.2 (0.19 without)"],
    ]


def test_convolutions_of_every_region_or_once_an_image():
    """VGG-16 and the published sizes. A crop of 224 x 224 is 30.7 GFLOPs of convolutions. An image
    of 600 x 1000, filled up to 608 x 1008, has 12 times as many pixels and costs Fast R-CNN as much
    as 12 crops, whatever the number of regions; 2,000 crops cost R-CNN 164 times as much."""
    with META:
        crops = RCNN(K, VGG(16, 3), (600, 1000), dense=())
        once = FastRCNN(K, VGG(16, 3), (600, 1000))
        per_crop = flops(lambda: crops.network.trunk(torch.zeros(1, 3, 224, 224)))
        per_image = flops(lambda: once.trunk(torch.zeros(1, 3, 608, 1008)))
    assert round(per_crop / 1e9, 1) == 30.7
    assert per_image / per_crop == pytest.approx(608 * 1008 / 224**2, rel=0.01)
    assert 2000 * per_crop / per_image == pytest.approx(164, abs=1)


@pytest.mark.parametrize(("at", "dense"), [("c4", ()), (None, None), ("c3", (8,))])
def test_faster_rcnn_is_fast_rcnn_on_proposals_of_its_own(at, dense):
    """The same weights and the same boxes: the same detections, to the last bit."""
    torch.manual_seed(0)
    size = (128, 160)
    faster = FasterRCNNC4(K, ResNet(18, 3), size, at, dense, proposals_test=50, score=0.0).eval()
    fast = FastRCNN(K, ResNet(18, 3), size, map=at, dense=dense, score=0.0).eval()
    theirs = {name: v for name, v in faster.state_dict().items() if not name.startswith("rpn.")}
    fast.load_state_dict(theirs)
    images = image_of(torch.zeros(0, 4), size)
    with torch.inference_mode():
        found = faster.proposals(faster.features(images.pixels), images)
        expected = faster.predict(images)
        images.proposals = found[0]
        said = fast.predict(images)
    assert found[0].shape == (1, 50, 4)
    for column in ("boxes", "scores", "labels"):
        assert torch.equal(getattr(said, column), getattr(expected, column)), column


def test_all_of_them_are_told_where_to_look_but_the_last():
    assert [model.reads_proposals for model in CHAIN] == [True, True, True, False]
    assert all(issubclass(model, DetectionModel) for model in CHAIN)


TINY = (
    *("task=detect", "model=rcnn", "proposals=sliding_windows", "proposals.count=40"),
    *("data.size=64", "data.digits=[1,3]", "data.train_images=12", "data.val_images=4"),
    *("optimizer=sgd", "model.crops=16", "trainer.batch_size=4", "trainer.steps=3"),
    *("trainer.save_every=2", "trainer.test=false", "trainer.threads=1"),
    *("trainer.tensorboard=false", "trainer.eval_batch_size=4"),
)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["finetune", "svm", "boxes"])
def test_rcnn_stopped_within_each_stage_and_resumed(moment, command, tmp_path, monkeypatch):
    """Fine-tuning goes on bit for bit; SVMs and regressors are solved anew, to the same numbers."""

    def run(name: str) -> int:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache of {name}"))
        return command("train", f"hydra.run.dir={tmp_path / name}", *TINY)

    assert run("whole") == 0
    owner, name, number = {
        "finetune": (Loop, "_step", 2),
        "svm": (FittedRegions, "_fit_svm", 1),
        "boxes": (FittedRegions, "_fit_boxes", 1),
    }[moment]
    original, calls = getattr(owner, name), []

    def stopped(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stopped)
        assert run("parts") == 143
    assert command("train", f"resume={tmp_path / 'parts'}") == 0
    whole, parts = (checkpoint.read(tmp_path / one / "last.pt") for one in ("whole", "parts"))
    assert whole["progress"] == parts["progress"]
    for key, value in whole["model"].items():
        assert torch.equal(value, parts["model"][key]), key
