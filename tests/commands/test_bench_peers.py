"""``cnnctl bench peers``: what is asked for, what is left out and why, and the figures."""

from __future__ import annotations

import importlib
import json
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cnnctl.commands import bench_peers, peer_table
from cnnctl.commands.peer_table import Row, chosen_machine, markdown, rows_of
from cnnctl.engine import stopwatch
from cnnctl.engine.machine import Machine
from cnnctl.engine.signals import StopFlag
from cnnctl.engine.stopwatch import Times
from cnnctl.errors import Exit, UserError
from cnnctl.peers.works.base import Asked, Side
from cnnctl.peers.works.table import PLAIN, WORKS, Work

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("word", "field", "problem", "advice"),
    [
        ("work=[resnet21]", "work", 'there is no work "resnet21"', 'did you mean "resnet20"?'),
        ("peers=tim_loop", "peers", 'there is no peer "tim_loop"', 'did you mean "timm_loop"?'),
        ("turns=2", "turns", "must be at least 3, got 2", None),
        ("images=0", "images", "must be at least 1, got 0", None),
        ("images=many", "images", "must be a whole number or null, not 'many'", None),
        ("budget=0", "budget", "must be above 0 seconds, got 0", None),
        (
            "precision=fp8",
            "precision",
            'there is no precision "fp8"',
            "take fp32, bf16, fp16 or auto",
        ),
        ("json=/nowhere/at/a.json", "json", 'there is no folder for "/nowhere/at/a.json"', None),
        ("json=.", "json", '"." is a folder', None),
        (
            *("work=resnet20 peers=airbench", "peers", "none of these does any of this work"),
            "leave peers= out: all that do it are taken",
        ),
        ("turn=3", "turn", "unknown key", 'did you mean "turns"?'),
    ],
)
def test_one_sentence(word, field, problem, advice):
    with pytest.raises(UserError) as raised:
        bench_peers.run(word.split(), None)
    assert (raised.value.field, raised.value.problem) == (field, problem)
    if advice is not None:
        assert raised.value.advice == advice


@pytest.mark.parametrize(
    ("settings", "field", "problem"),
    [
        ({"device": "cuda:7"}, "device", "cuda:7"),
        ({"precision": "fp16", "device": "cpu"}, "precision", "fp16 is for GPUs"),
        ({"threads": 10**6}, "threads", "is 1000000, .* this machine has"),
    ],
)
def test_what_the_machine_cannot_do(settings, field, problem):
    with pytest.raises(UserError, match=problem) as raised:
        chosen_machine({"device": "auto", "precision": "auto", "threads": None, **settings})
    assert raised.value.field == field
    assert "trainer." not in str(raised.value.advice)


def test_peers_are_the_files():
    names = bench_peers.peer_names()
    assert {"reference_loop", "torchvision_detection", "airbench"} <= set(names)
    kinds = {work.kind for work in WORKS.values()}
    for name in names:
        module = importlib.import_module(f"cnnctl.peers.{name}")
        assert set(module.DOES) <= kinds, name
        assert all(isinstance(package, str) for package in module.PACKAGES)
        assert module.PRECISION in ("fp32", "fp16", "as ours")
        assert callable(module.side)
        assert module.__doc__
    for name, work in WORKS.items():
        assert set(work.targets) <= set(names), name
        assert callable(importlib.import_module(f"cnnctl.peers.works.{work.kind}").made)


def test_ratios_turn_by_turn():
    """2 / 1, 4 / 1 and 9 / 3 seconds: median 3, quartiles 2.5 and 3.5."""
    both: dict[str, Any] = {"theirs": Times((2, 4, 9)), "ours": Times((1, 1, 3))}
    row = Row("w", "a work", "p", "fp32", "drawn digits", images=100, target=3, **both)
    assert row.cells()[:2] == ["a work, 100 images of drawn digits", "p (fp32)"]
    assert row.ratios.seconds == (2, 4, 3)
    assert (row.ratio, row.ratios.spread, row.met) == (3, (2.5, 3.5), True)
    assert row.cells()[2:5] == ["25", "100", "3.00x (2.50-3.50)"]
    assert row.cells()[7:] == [">= 3.00x", "yes"]
    assert Row("w", "", "p", note="skipped").met is None


class Clock:
    """Stands where a work's sides only let time pass."""

    def __init__(self) -> None:
        self.now = 0.0

    def takes(self, seconds: float, **figures: float) -> Side:
        def run() -> None:
            self.now += seconds

        return Side(run, lambda: dict(figures))


@pytest.fixture
def timed(monkeypatch) -> Any:
    """Peers "slow" (6 s), "broken" and "absent" of a work that takes ours 2 s."""
    clock = Clock()

    def fails(job: Any) -> Side:
        raise ValueError("no such thing\nat all")

    job = SimpleNamespace(
        images=12, data="data=nothing", ours=lambda: clock.takes(2, loss=1.5), clock=clock
    )
    does: dict[str, Any] = {"DOES": ("wait",), "PACKAGES": (), "PRECISION": "fp32"}
    modules = {
        "cnnctl.peers.slow": SimpleNamespace(
            **does, side=lambda job: clock.takes(6, loss=1.25, top1=0.5)
        ),
        "cnnctl.peers.broken": SimpleNamespace(**does, side=fails),
        "cnnctl.peers.absent": SimpleNamespace(**{**does, "PACKAGES": ("no_such_package",)}),
        "cnnctl.peers.gpu": SimpleNamespace(**does, DEVICES=("cuda",)),
        "cnnctl.peers.other": SimpleNamespace(**{**does, "DOES": ("else",)}),
        "cnnctl.peers.works.wait": SimpleNamespace(made=lambda work, asked: job),
    }
    monkeypatch.setattr(peer_table.importlib, "import_module", modules.__getitem__)
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: clock.now)
    return ["slow", "broken", "absent", "gpu", "other"]


def test_what_cannot_run_is_named(timed, tmp_path):
    work = Work("waiting", "wait", (), 12, targets={"slow": {PLAIN: 4.0}})
    asked = {"peers": timed, "turns": 5, "budget": 1e9}
    machine = Machine(CPU, torch.float32, channels_last=True)  # fp32: never AMX's targets
    slow, broken, absent, gpu = rows_of("w", work, asked, Asked(machine, tmp_path), StopFlag())
    assert slow.theirs.seconds == (6,) * 5
    assert slow.ours.seconds == (2,) * 5
    assert (slow.ratio, slow.target, slow.met) == (3, 4.0, False)
    assert slow.cells() == [
        *("waiting, 12 images of data=nothing", "slow (fp32)", "2", "6", "3.00x (3.00-3.00)"),
        *("loss 1.25, top1 50.0%", "loss 1.5", ">= 4.00x", "no"),
    ]
    assert broken.note == "failed: ValueError: no such thing"
    assert absent.note == "skipped: pip install no_such_package"
    assert gpu.note == "skipped: needs a CUDA device"
    text = markdown([("machine", "a sundial")], [slow, absent])
    assert text.splitlines()[0] == "machine: a sundial  "
    data = "waiting, 12 images of data=nothing"
    assert text.splitlines()[-2].startswith(f"| {data} | slow (fp32) | 2 | 6 | 3.00x (3.00-3.00) |")


def test_asked_to_stop_it_begins_nothing_more(monkeypatch, tmp_path):
    """Once in the first turn of a peer, once in the turns that are timed."""
    begun: list[str] = []

    def side(name: str) -> Side:
        def run() -> None:
            begun.append(name)
            if len(begun) == last:
                stop.signum = 2

        return Side(run, lambda: {"figures of": float(begun.append(f"{name}'s") or 1)})

    does: dict[str, Any] = {"DOES": ("w",), "PACKAGES": (), "PRECISION": "fp32"}
    job = SimpleNamespace(images=1, data="nothing", ours=lambda: side("ours"))
    modules = {
        **{
            f"cnnctl.peers.{n}": SimpleNamespace(**does, side=lambda job, n=n: side(n))
            for n in "ab"
        },
        "cnnctl.peers.works.w": SimpleNamespace(made=lambda work, asked: job),
    }
    monkeypatch.setattr(peer_table.importlib, "import_module", modules.__getitem__)
    asked = {"peers": ["a", "b"], "turns": 3, "budget": 9.0}
    whole = Asked(Machine(CPU, torch.float32, channels_last=True), tmp_path)
    notes: dict[int, list[str]] = {}
    for last in (1, 3, 4, 5):
        begun, stop = [], StopFlag()
        notes[last] = [r.note for r in rows_of("w", Work("", "w", (), 1), asked, whole, stop)]
        assert [name for name in begun if name in ("a", "b", "ours")] == (
            ["a", "b", "ours", "ours", "a", "b"][:last]
        )
    assert notes == {1: ["stopped"] * 2, 3: ["stopped"] * 2, 4: ["stopped"] * 2, 5: ["", "stopped"]}
    assert begun[-2:] == ["ours's", "a's"]


def test_a_work_that_cannot_be_made_is_a_row(timed, tmp_path, monkeypatch):
    def refuses(work: Any, asked: Any) -> None:
        raise UserError("64 are less than a batch of 128", field="images")

    monkeypatch.setattr(
        peer_table.importlib.import_module("cnnctl.peers.works.wait"), "made", refuses
    )
    asked = {"peers": timed, "turns": 5, "budget": 1e9}
    whole = Asked(Machine(CPU, torch.float32, channels_last=True), tmp_path)
    rows = rows_of("w", Work("waiting", "wait", (), 12), asked, whole, StopFlag())
    assert [row.note for row in rows] == [
        *["skipped: images: 64 are less than a batch of 128"] * 2,
        "skipped: pip install no_such_package",
        "skipped: needs a CUDA device",
    ]


def test_the_whole_command(tmp_path, monkeypatch, capsys):
    recipe = ("model=mlp", "model.widths=[16]", "optimizer=sgd", "optimizer.nesterov=true")
    recipe = (*recipe, "schedule=constant", "augmentation=standard", "trainer.batch_size=32")
    tiny = Work("tiny", "epoch", recipe, 64, 16, targets={"reference_loop": {PLAIN: 1e-9}})
    monkeypatch.setitem(WORKS, "tiny", tiny)
    monkeypatch.setattr("cnnctl.peers.works.epoch._TEST", 20)
    monkeypatch.setenv("CNNCTL_DATA", str(tmp_path))
    figures = tmp_path / "figures.json"
    words = ["work=tiny", "peers=[reference_loop,thirty_lines,airbench]", "turns=3", "workers=0"]
    words += [f"json={figures}", "precision=fp32", "markdown=true"]
    assert bench_peers.run(words, None) == Exit.DONE
    said = json.loads(figures.read_text())
    first, second = said["rows"]  # airbench does no epochs
    assert [row["peer"] for row in said["rows"]] == ["reference_loop", "thirty_lines"]
    assert first["met"] is True
    assert first["data"] == "drawn digits, 16 x 16"
    assert len(first["theirs"]["seconds"]) == len(second["ours"]["seconds"]) == 3
    assert first["our_figures"] == second["our_figures"]
    printed = capsys.readouterr().out
    assert "| tiny, 64 images of drawn digits, 16 x 16 | reference_loop (fp32) |" in printed
    assert "| tiny, 64 images of drawn digits, 16 x 16 | thirty_lines (as ours) |" in printed
    assert "threads, 0 processes where a loader has some" in printed
    assert "3 of each side, in turns; 300 s a work at most" in printed
    assert f"torchvision {version('torchvision')}" in printed
    assert printed.splitlines()[-1] == f"written: {figures}"


def test_its_settings_can_be_shown(capsys):
    assert bench_peers.run(["work=[unet,fcn]", "turns=5"], None, show=True) == Exit.DONE
    shown = capsys.readouterr().out
    assert shown.startswith("work:\n- unet\n- fcn\npeers: null\n")
    assert "turns: 5\n" in shown
