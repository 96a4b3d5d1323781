"""The tables and the picture of where the time goes, from what a sweep left."""

from __future__ import annotations

import math

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from cnnctl import compose
from cnnctl.commands import time_parts
from cnnctl.commands.jobs import Job, Result
from cnnctl.commands.time_parts import Timed, show_time_parts, slowest, timed, training
from cnnctl.drawing.time_pictures import TimedDetector
from cnnctl.drawing.time_pictures import time_parts as picture


class Told:
    """A console that keeps what it is told."""

    def __init__(self) -> None:
        self.tables: dict[str, tuple[list, list]] = {}
        self.said: list[str] = []

    def table(self, title, columns, rows) -> None:
        self.tables[title] = (list(columns), [list(row) for row in rows])

    def say(self, line) -> None:
        self.said.append(line)


def timed_so(name: str, image: float, published: tuple[float, float] | None, **parts) -> Timed:
    return Timed(name, "coco_ap50", 0.5, {"train": 12.0}, image, parts, published)


RCNN = timed_so("rcnn", 5000.0, (2.0, 47.0), proposals=1000.0, regions=4000.0)
FAST = timed_so("fast_rcnn", 1100.0, (2.0, 0.32), proposals=1000.0, convolution=60.0, regions=40.0)
WINDOWS = timed_so("window_detector", 9000.0, None, convolution=9000.0)


def test_ratios_by_hand():
    """Fast R-CNN: 4.5 times as fast, 40 times without the proposals; by its paper 21 and 147."""
    told = Told()
    assert slowest([WINDOWS, FAST, RCNN]) is RCNN
    assert slowest([WINDOWS, timed_so("ssd", 10.0, None)]) is WINDOWS
    time_parts._show_ratios(told, [WINDOWS, RCNN, FAST], RCNN)  # pyright: ignore[reportArgumentType]
    ((columns, rows),) = told.tables.values()
    assert columns[1:5] == ["here", "papers", "here, without proposals", "papers, without"]
    assert rows[0] == ["window_detector", "0.56x", "", "0.44x", "", ""]
    assert rows[1] == ["rcnn", "1x", "1x", "1x", "1x", "49 (47 without)"]
    assert rows[2] == ["fast_rcnn", "4.5x", "21x", "40x", "147x", "2.3 (0.32 without)"]


def test_training_names_its_stages():
    assert training({"train": 12.4}) == "12"
    assert training({"fine_tune": 60.0, "svm": 9.5}) == "70 (fine_tune 60, svm 9.5)"


def result(number: int, model: str, **summary) -> Result:
    overrides = ["task=detect", "data=digit_scenes", f"model={model}"]
    config = OmegaConf.to_container(compose.settings(compose.compose("train", overrides)))
    assert isinstance(config, dict)
    plain = {str(key): value for key, value in config.items()}
    job = Job(f"{number}_model={model}", {"model": model}, overrides, plain, {"model": model})
    return Result(job, "done", {"monitor": "coco_ap", "test": {"coco_ap50": 0.5}, **summary})


def test_a_sweep_says_where_its_time_goes(tmp_path):
    """In the order of the jobs, which come ranked; a classifier's are not split."""
    parts = {"convolution": 6.0, "post-processing": 2.0, "other": 1.0}
    ssd = result(1, "ssd", one_image={"median": 9.0, "parts": parts}, stages={"train": 30.0})
    parts = {"proposals": 4.0, "convolution": 6.0, "regions": 10.0, "other": 0.0}
    c4 = result(0, "faster_rcnn_c4", one_image={"median": 20.0, "parts": parts})
    unsplit = result(2, "yolo", one_image={"median": 3.0, "parts": {}})
    assert timed(unsplit) is None
    told = Told()
    show_time_parts(told, [ssd], tmp_path)  # pyright: ignore[reportArgumentType]
    assert not told.tables
    show_time_parts(told, [ssd, c4, unsplit], tmp_path)  # pyright: ignore[reportArgumentType]
    (columns, rows), _ = told.tables.values()
    assert columns[1:5] == ["coco_ap50", "training", "image", "proposals"]
    assert rows[0] == ["faster_rcnn_c4", "50.00%", "0", "20", "4", "6", "10", "", "0"]
    assert rows[1] == ["ssd", "50.00%", "30", "9", "", "6", "", "2", "1"]
    assert told.said == [f"where the time goes: {tmp_path / 'time_parts.png'}"]
    with Image.open(tmp_path / "time_parts.png") as image:
        assert image.size[0] >= 1000  # pixels: it is projected


def test_colours_are_shares_of_a_bar():
    """Two parts of one length each, whatever the scale; a part that takes no time is not seen."""
    even = TimedDetector("even", {"proposals": 50.0, "regions": 50.0, "other": 0.0}, 100.0, 0.5)
    fast = TimedDetector("fast", {"regions": 1.0}, 1.0, math.nan)
    pixels = picture([even, fast], "AP50").numpy()
    row = pixels[np.flatnonzero((pixels == (0xE8, 0xA3, 0x3D)).all(2).any(1))[5]]
    proposals, regions = ((row == colour).all(1).sum() for colour in (ORANGE, RED))
    assert proposals > 150
    assert proposals == pytest.approx(regions, abs=3)


ORANGE, RED = (0xE8, 0xA3, 0x3D), (0xCC, 0x29, 0x20)
