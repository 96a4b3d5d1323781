"""What is said of each layer, by hand; and that looking changes no bit."""

from __future__ import annotations

import json
import math

import comparing
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.engine import checkpoint
from cnnctl.engine.initialisation import Init, initialise
from cnnctl.engine.loop import Loop
from cnnctl.engine.watch import Watch


class Net(nn.Module):
    """Two dense layers whose numbers are easy; the rectifier is a function, and in place."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(2, 2, bias=False)
        self.two = nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            self.one.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
            self.two.weight.copy_(torch.tensor([[2.0, 5.0]]))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.two(F.relu_(self.one(inputs)))


def test_figures_by_hand():
    net = Net()
    watch = Watch(net)
    with watch.forward():
        out = net(torch.tensor([[3.0, 4.0], [1.0, 2.0]]))
    out.sum().backward()
    watch.gradients()
    found = watch.figures()
    # one: [[3, -4], [1, -2]], rectified [[3, 0], [1, 0]]; two: [6, 2]
    assert list(found) == [
        *("gradient/one", "gradient/two", "mean/one", "mean/two", "std/one", "std/two"),
        "zeros/one",
    ]
    expected = {
        "mean/one": -0.5,
        "std/one": math.sqrt((3.5**2 + 3.5**2 + 1.5**2 + 1.5**2) / 4),
        "zeros/one": 0.5,
        "mean/two": 4.0,
        "std/two": 2.0,
        "gradient/two": 4.0,  # (3 + 1, 0)
        "gradient/one": 2 * math.sqrt(4**2 + 6**2),  # 2 (3 + 1, 4 + 2), and 0 for the dead unit
    }
    assert found == pytest.approx(expected, abs=1e-6)
    assert watch.figures() == {}


@pytest.mark.parametrize("kind", [nn.ReLU, nn.ReLU6])
def test_rectifiers_that_are_modules_and_parts_of_a_batch(kind):
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1), kind())
    nn.init.ones_(net.get_parameter("0.weight"))
    watch = Watch(net)
    for share in (0.25, 0.75):  # of pixels below the mean, in one part of the batch each
        pixels = torch.ones(1, 1, 1, 4)
        pixels[..., : int(4 * share)] = -1
        with watch.forward():
            net(pixels)
    assert watch.figures()["zeros/0"] == pytest.approx(0.5)
    net(torch.ones(2, 1, 1, 4))
    assert watch.figures() == {}, "nothing is hooked between the steps"


SETTINGS = ("trainer.clip=1", "trainer.accumulate=2", "trainer.save_every=4")


@pytest.fixture(scope="module")
def plain(train, tmp_path_factory):
    directory = tmp_path_factory.mktemp("watch") / "off"
    assert train(directory, *SETTINGS) == 0
    return directory


def same_weights(one, other) -> None:
    first, second = (checkpoint.read(run / "last.pt") for run in (one, other))
    for name in ("model", "optimizer"):
        assert comparing.differences({"": first[name]}, {"": second[name]}) == []


def test_a_watched_run_has_the_same_bits(plain, train, tmp_path):
    assert train(tmp_path / "on", *SETTINGS, "trainer.watch=true") == 0
    same_weights(plain, tmp_path / "on")
    off, on = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (plain, tmp_path / "on")
    )
    watched = [row for row in on if any(name.startswith("watch/") for name in row)]
    assert [row for row in on if row not in watched] == off
    assert [row["step"] for row in watched] == [row["step"] for row in off if "lr" in row]
    assert watched[0].keys() - {"stage", "step", "epoch"} == {
        *(f"watch/{kind}/{name}" for kind in ("gradient", "mean", "std")
          for name in ("features.0", "classifier")),
        "watch/zeros/features.0",
    }  # fmt: skip
    assert all(0 < row["watch/zeros/features.0"] < 1 for row in watched)


def test_resumed_and_watched_from_there(plain, train, command, tmp_path, monkeypatch):
    count = iter(range(20))
    original = Loop._after_step

    def stop(self, *arguments):
        if next(count) == 9:
            raise KeyboardInterrupt
        original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_after_step", stop)
        assert train(tmp_path / "run", *SETTINGS) == 130
    assert command("train", f"resume={tmp_path / 'run'}", "trainer.watch=true") == 0
    same_weights(plain, tmp_path / "run")
    assert "watch/gradient" in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_watch_and_compile_do_not_go_together(train, tmp_path, capsys):
    assert train(tmp_path / "run", "trainer.watch=true", "trainer.compile=true") == 2
    assert "watch looks into the network" in capsys.readouterr().err


def test_gradients_that_vanish_show():
    """Ten sigmoid layers started at random: each takes its share; ReLU with He's start keeps it."""
    ratios: dict[Init, float] = {}
    ways: list[tuple[type[nn.Module], Init]] = [(nn.Sigmoid, "xavier"), (nn.ReLU, "he")]
    for kind, how in ways:
        torch.manual_seed(0)
        net = nn.Sequential(*(layer for _ in range(10) for layer in (nn.Linear(64, 64), kind())))
        initialise(net, how)
        watch = Watch(net)
        with watch.forward():
            loss = net(torch.randn(32, 64)).square().mean()
        loss.backward()
        watch.gradients()
        found = watch.figures()
        ratios[how] = found["gradient/0"] / found["gradient/18"]
    assert ratios["xavier"] < 1e-4
    assert 0.3 < ratios["he"] < 30
