"""``cnnctl eval checkpoint=[a,b]``, and test-time views from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from cnnctl.commands.eval import load
from cnnctl.data.digits import Digits
from cnnctl.engine import checkpoint
from cnnctl.ops.views import five_crops, scaled
from cnnctl.structures import Images


@pytest.fixture(scope="module")
def other(train, tmp_path_factory) -> Path:
    """A second network on the same data: of another kind, and worse."""
    run = tmp_path_factory.mktemp("runs") / "other"
    settings = ("model=linear", "seed=5", "trainer.steps=5", "trainer.evaluate_every_steps=5")
    assert train(run, *settings) == 0
    return run


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of the trained run, to write into."""
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy"


def network(run: Path):
    """The best network of a run, and the test images as it sees them."""
    state = checkpoint.read(run / "best.pt")
    data = Digits("test")
    data.mean, data.std = tuple(state["mean"]), tuple(state["std"])
    model = load(DictConfig(state["config"]), state, data, (8, 8)).eval()
    pixels = (data.pixels.float() / 255 - data.mean[0]) / data.std[0]
    return model, pixels


def figures(probabilities: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """top-1 and the negative log-likelihood."""
    top1 = (probabilities.argmax(1) == labels).double().mean()
    return float(top1), float(-probabilities.gather(1, labels[:, None]).log().mean())


def test_two_networks_by_hand(run, other, command, capsys):
    assert command("eval", f"checkpoint=[{run},{other}]") == 0
    found = json.loads((run / "eval-test@2models.json").read_text())
    each = []
    labels = Digits("test").labels
    with torch.no_grad():
        for place, one in zip(found["checkpoints"], (run, other), strict=True):
            model, pixels = network(one)
            each.append(model(pixels).softmax(1))
            assert place["checkpoint"] == str(one / "best.pt")
            assert (place["top1"], place["nll"]) == pytest.approx(figures(each[-1], labels))
    together = figures((each[0] + each[1]) / 2, labels)
    assert (found["top1@2models"], found["nll@2models"]) == pytest.approx(together)
    assert found["images"] == 360
    assert sum(map(sum, found["confusion"])) == 360
    table = capsys.readouterr().out
    for top1 in (*(place["top1"] for place in found["checkpoints"]), together[0]):
        assert f"{top1:.2%}" in table
    assert "@2models" in table


def test_the_protocols_name_comes_first(run, other, command, capsys):
    protocol = ("task.view=ten_crop", "task.flip=false")
    assert command("eval", f"checkpoint=[{run},{other}]", *protocol) == 0
    out = capsys.readouterr().out
    each = []
    with torch.no_grad():
        for one in (run, other):
            model, pixels = network(one)
            crops = five_crops(scaled(pixels, (9, 9)), (8, 8))
            each.append(sum(model(crop).softmax(1) for crop in crops) / 5)
    assert "top1@5crop" in out
    top1, _ = figures((each[0] + each[1]) / 2, Digits("test").labels)
    last = next(line for line in out.splitlines() if "@2models " in line)
    assert abs(float(last.split("│")[2].strip(" %")) - 100 * top1) < 0.3  # rounded to grey levels
    assert "not written" in out
    assert not (run / "eval-test@2models.json").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda state: state["config"]["data"].update(root="elsewhere"), "another data.root"),
        (lambda state: state["config"]["task"].update(view="dense"), "another task.view than"),
        (lambda state: state.update(classes=["a", "b"]), "has classes ['a', 'b']"),
        (None, "is named twice"),
    ],
)
def test_other_questions_are_refused(changed, message, run, other, command, capsys, tmp_path):
    file = run / "best.pt"
    if changed is not None:
        state = checkpoint.read(other / "best.pt")
        changed(state)
        file = tmp_path / "changed.pt"
        torch.save(state, file)
    assert command("eval", f"checkpoint=[{run},{file}]") in (2, 3)
    said = capsys.readouterr().err
    assert message in said
    assert str(file) in said


def test_only_eval_takes_several(run, other, command, capsys, tmp_path):
    assert command("predict", f"checkpoint=[{run},{other}]", f"input={tmp_path}") == 2
    assert "checkpoint: is a list" in capsys.readouterr().err


def test_predict_and_eval_look_as_the_run_was_scored(train, command, tmp_path, capsys):
    """A run with task.view=dense: its metrics are named so, and predict slides too."""
    from PIL import Image

    run, views = tmp_path / "run", ("task.view=dense", "task.scales=[1.0,1.5]")
    assert train(run, *views, "trainer.steps=4", "trainer.evaluate_every_steps=4") == 0
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("val/top1@dense+x1+x1.5" in line for line in logged)
    assert command("eval", f"checkpoint={run}", "split=val") == 0
    found = json.loads((run / "eval-val.json").read_text())
    last = [line for line in logged if "val/top1@dense+x1+x1.5" in line][-1]
    assert found["top1@dense+x1+x1.5"] == last["val/top1@dense+x1+x1.5"]

    model, pixels = network(run)
    Image.fromarray(Digits("test").pixels[0, 0].numpy()).save(tmp_path / "one.png")
    where = f"output={tmp_path / 'said'}"
    assert command("predict", f"checkpoint={run}", f"input={tmp_path / 'one.png'}", where) == 0
    said = json.loads((tmp_path / "said" / "predictions.jsonl").read_text())
    with torch.no_grad():
        images = Images(pixels[:1], [(8, 8)], [(8, 8)])
        expected = model.predict(images).log_probs.exp().max()
        slid = model.score_map(scaled(pixels[:1], (12, 12))).mean((2, 3)).softmax(1)
        both = (model(pixels[:1]).softmax(1) + slid) / 2
    assert said["probability"] == pytest.approx(float(expected), abs=1e-5)
    assert float(expected) == pytest.approx(float(both.max()), abs=1e-5)

    places = ("task.scales=[2.0]", "task.pool=none")
    assert (
        command("predict", f"checkpoint={run}", f"input={tmp_path / 'one.png'}", where, *places)
        == 0
    )
    with Image.open(tmp_path / "said" / "places" / "one.png") as image:
        assert image.size == (9, 9)


def test_mirrors_of_digits_are_refused(run, command, capsys):
    assert command("eval", f"checkpoint={run}", "task.view=ten_crop") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: task.view: a mirror image of this data is of another class")
    assert "task.flip=false" in said


def test_no_checkpoint_at_all_is_one_sentence(command, capsys):
    assert command("eval", "checkpoint=[]") == 2
    assert "checkpoint: names none" in capsys.readouterr().err
