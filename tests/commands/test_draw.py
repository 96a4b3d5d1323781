"""``cnnctl info draw=``: anchors with their matches, and proposals, of a training batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from cnnctl import build, compose
from cnnctl.commands import draw
from cnnctl.engine import checkpoint
from cnnctl.engine.checkpoint import Checkpoints
from cnnctl.errors import Exit
from cnnctl.ops.boxes import iou

FEW = (
    *("task=detect", "data=digit_scenes", "data.size=64", "data.train_images=8"),
    *("data.val_images=2", "data.test_images=2", "trainer.batch_size=2"),
)
MODELS = {
    "faster_rcnn": ("model.width=16", "model.hidden=16", "model.proposals_test=7"),
    "faster_rcnn_c4": ("model.proposals_test=7",),
    "rfcn": ("model.proposals_test=7",),
    "retinanet": ("model.width=32",),
    "ssd": (),
}


@pytest.fixture
def drawn(monkeypatch) -> list[tuple[Any, ...]]:
    """What the functions that draw were given."""
    given: list[tuple[Any, ...]] = []

    def keep(*columns: Any) -> torch.Tensor:
        given.append(columns)
        return torch.zeros(4, 6, 3, dtype=torch.uint8)

    monkeypatch.setattr(draw, "draw_anchors", keep)
    monkeypatch.setattr(draw, "draw_proposals", keep)
    return given


def asked(what: str, model: str, path: Any, *more: str) -> None:
    config = compose.compose("train", [*FEW, f"model={model}", *MODELS[model], *more])
    own = compose.compose("info", [f"draw={what}", f"output={path}"])
    draw.run(compose.settings(config), compose.choices(config), compose.settings(own))


@pytest.mark.parametrize("model", ["faster_rcnn", "faster_rcnn_c4", "rfcn", "retinanet", "ssd"])
def test_an_anchor_is_drawn_in_the_colour_of_the_box_that_it_overlaps(model, drawn, tmp_path):
    asked("anchors", model, tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size == (6, 8), "one picture below the other"
    assert len(drawn) == 2
    for image, anchors, matches, truth, names in drawn:
        assert image.shape == (3, 64, 64)
        assert len(names) == len(truth) > 0
        assert set(names) <= set("0123456789")
        overlap = iou(truth.float(), anchors.cpu().float())  # (R, A)
        positive = matches >= 0
        own = overlap[matches[positive], positive.nonzero()[:, 0]]
        best = overlap.amax(1)[matches[positive]]
        most = overlap.amax(0)[positive]
        assert ((own >= most - 1e-6) | (own >= best - 1e-6)).all()
        assert (overlap.amax(0)[matches == -1] < 0.5).all()
        assert positive.any()


def test_proposals_are_those_of_the_network(drawn, tmp_path):
    asked("proposals", "faster_rcnn", tmp_path / "p.png")
    for image, boxes, scores in drawn:
        assert len(boxes) == len(scores) == 7
        assert ((scores > 0) & (scores < 1)).all()
        assert scores.tolist() == sorted(scores.tolist(), reverse=True)
        assert boxes.min() >= 0
        assert boxes.max() <= image.shape[1]


def test_a_box_that_is_not_trained_on_is_not_drawn(drawn, tmp_path, monkeypatch):
    """The rows of the others move up, and the matches with them."""
    from cnnctl.data.digit_boxes import DigitBoxes

    columns = DigitBoxes.columns

    def crowded(self):
        found = columns(self)
        return {
            **found,
            "crowd": torch.arange(found["crowd"].shape[1]).expand_as(found["crowd"]) == 0,
        }

    monkeypatch.setattr(DigitBoxes, "columns", crowded)
    asked("anchors", "ssd", tmp_path / "a.png")
    for _, anchors, matches, truth, names in drawn:
        assert matches.max() == len(truth) - 1 == len(names) - 1
        first = int((matches == 0).nonzero()[0, 0])
        assert iou(truth[:1], anchors[first : first + 1].cpu()) > 0


def test_from_the_command_line(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command("info", *FEW, *MODELS["faster_rcnn"], "draw=proposals") == 0
    out = capsys.readouterr().out
    assert "parameters" in out, "the table too"
    assert f"proposals: {tmp_path / 'proposals-faster_rcnn-digit_scenes.png'}" in out
    width, height = Image.open(tmp_path / "proposals-faster_rcnn-digit_scenes.png").size
    assert height > 2 * draw.IMAGES * 100
    assert width > 600


def test_targets_of_masks(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own = ("task=instance", *FEW[1:], *MODELS["faster_rcnn"], "model.mask_width=8")
    assert command("info", *own, "draw=targets") == 0
    path = tmp_path / "targets-mask_rcnn-digit_scenes.png"
    assert f"targets: {path}" in capsys.readouterr().out
    width, height = Image.open(path).size
    assert height > 2 * 500, "both images of the batch"
    assert width > 600


def test_weights_of_a_run_are_taken(drawn, tmp_path):
    asked("proposals", "faster_rcnn", tmp_path / "p.png")
    own = [*FEW, "model=faster_rcnn", *MODELS["faster_rcnn"]]
    config = compose.settings(compose.compose("train", own))
    torch.manual_seed(5)
    model = build.model(config, build.dataset(config, "train"), (64, 64))
    state = {"config": {}, "model": model.state_dict(), "progress": {"total_steps": 1}}
    state = {**dict.fromkeys(checkpoint.HOLDS), **state, "format": checkpoint.FORMAT}
    (tmp_path / "run").mkdir()
    Checkpoints(tmp_path / "run").save(state, metric=None, best=True, keep=False)
    asked("proposals", "faster_rcnn", tmp_path / "p.png", f"init_from={tmp_path / 'run'}")
    assert len(drawn) == 4
    assert torch.equal(drawn[0][0], drawn[2][0])
    assert not torch.equal(drawn[0][2], drawn[2][2])


def test_templates_of_a_run(command, tmp_path, monkeypatch, capsys):
    """They are of its weights: before it is fitted there are none."""
    monkeypatch.chdir(tmp_path)
    own = [*FEW, "model=hog_detector"]
    assert command("info", *own, "draw=templates") == Exit.CONFIG
    assert "weights=<its run> has them" in capsys.readouterr().err
    config = compose.settings(compose.compose("train", own))
    model = build.model(config, build.dataset(config, "train"), (64, 64))
    torch.nn.init.normal_(model.template.weight)  # pyright: ignore
    state = {"config": {}, "model": model.state_dict(), "progress": {"total_steps": 1}}
    state = {**dict.fromkeys(checkpoint.HOLDS), **state, "format": checkpoint.FORMAT}
    (tmp_path / "run").mkdir()
    Checkpoints(tmp_path / "run").save(state, metric=None, best=True, keep=False)
    assert command("info", *own, "draw=templates", "weights=run", "output=t.png") == 0
    assert f"templates: {tmp_path / 't.png'}" in capsys.readouterr().out
    width, height = Image.open(tmp_path / "t.png").size
    assert width > 5 * 200 > 2 * 200 < height, "ten of them, five in a row"


@pytest.mark.parametrize(
    ("overrides", "code", "words"),
    [
        (("model=ssd", "draw=targets"), Exit.CONFIG, "model=ssd has no targets"),
        (("model=ssd", "draw=proposals"), Exit.CONFIG, "model=ssd has no proposals"),
        (("model=ssd", "draw=templates"), Exit.CONFIG, "model=ssd has no templates"),
        (("model=fcos", "draw=anchors"), Exit.CONFIG, "model=fcos has no anchors"),
        (("draw=ankers",), Exit.CONFIG, 'nothing to draw called "ankers"'),
        (("drow=anchors",), Exit.CONFIG, 'did you mean "draw"'),
        (("model=ssd", "draw=anchors", "output=nowhere/a.png"), Exit.MACHINE, "cannot be written"),
    ],
)
def test_what_cannot_be_drawn(overrides, code, words, command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command("info", *FEW, *overrides) == code
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_classifier_has_neither(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command("info", "draw=anchors") == Exit.CONFIG
    assert "model=lenet has no anchors" in capsys.readouterr().err
