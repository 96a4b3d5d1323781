"""Searches with Optuna: real ones, of tiny runs on the embedded digits."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
from pathlib import Path

import pytest

from cnnctl.commands import tune
from cnnctl.commands.search_space import search_space
from cnnctl.engine.journal import Journal
from cnnctl.engine.run import RunDirectory
from cnnctl.errors import Exit, UserError

optuna = pytest.importorskip("optuna")

TINY = ["trainer.steps=6", "trainer.tensorboard=false", "trainer.threads=1", "trainer.test=false"]
SPACE = ["optimizer.lr=tag(log,interval(1e-3,1))", "model=linear,mlp"]
SEARCH = ["tune", *TINY, *SPACE, "trials=4"]


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("tune") / "study"
    assert command(*SEARCH, f"study={directory}") == 0
    return directory


def _table(directory: Path) -> list[dict[str, str]]:
    with (directory / "study.csv").open() as file:
        rows = list(csv.DictReader(file))
    clock = ("seconds", "images_per_second")
    return [{name: value for name, value in row.items() if name not in clock} for row in rows]


def _trials(directory: Path) -> list:
    backend = optuna.storages.journal.JournalFileBackend(str(directory / "optuna.journal"))
    storage = optuna.storages.JournalStorage(backend)
    return optuna.load_study(study_name="cnnctl", storage=storage).trials


def test_every_trial_is_a_run_and_the_table_ranks_them(finished):
    rows = _table(finished)
    assert len(rows) == 4
    bests = [float(row["best"]) for row in rows]
    assert bests == sorted(bests, reverse=True)
    for row in rows:
        assert json.loads((finished / row["job"] / "summary.json").read_text())["best"] == float(
            row["best"]
        )
        assert 1e-3 <= float(row["optimizer.lr"]) <= 1


def test_optuna_knows_what_the_runs_came_to(finished):
    by_number = {int(row["job"][:4]): row for row in _table(finished)}
    for trial in _trials(finished):
        row = by_number[trial.number]
        assert trial.state.name == "COMPLETE"
        assert trial.value == float(row["best"])
        assert trial.params["model"] == row["model"]
        assert f"{trial.params['optimizer.lr']:.4g}" == row["optimizer.lr"]
        assert list(trial.intermediate_values.values())[-1] == trial.value


@pytest.mark.slow
def test_the_same_search_tries_the_same_and_an_interrupted_one_too(
    finished, command, tmp_path, monkeypatch, capfd
):
    stepped, seen = Journal.stepped, []

    def signalled(self, now: int, images: int) -> None:
        stepped(self, now, images)
        seen.append(now)
        if len(seen) == 9:  # the third step of the second trial
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Journal, "stepped", signalled)
    assert command(*SEARCH, f"study={tmp_path / 'study'}") == Exit.INTERRUPTED
    assert [trial.state.name for trial in _trials(tmp_path / "study")] == ["COMPLETE", "RUNNING"]
    printed = capfd.readouterr().out.splitlines()[-1]
    assert command(*shlex.split(printed)[1:]) == 0
    assert len(seen) == 4 * 6  # no step twice
    assert _table(tmp_path / "study") == _table(finished)


def test_more_trials_go_on_with_the_same_study(finished, command, tmp_path):
    directory = tmp_path / "study"
    assert command(*SEARCH[:-1], "trials=2", f"study={directory}") == 0
    before = (directory / "study.csv").read_text()
    assert command(*SEARCH[:-1], "trials=2", f"study={directory}") == 0
    assert (directory / "study.csv").read_text() == before
    assert command(*SEARCH[:-1], "trials=3", f"study={directory}") == 0
    first_three = [row for row in _table(finished) if int(row["job"][:4]) < 3]
    ours = [{**row, "rank": ""} for row in _table(directory)]
    assert ours == [{**row, "rank": ""} for row in first_three]


@pytest.mark.slow
def test_a_run_that_is_not_promising_is_ended(command, tmp_path, monkeypatch):
    monkeypatch.setattr(optuna.trial.Trial, "should_prune", lambda trial: trial.number == 1)
    search = [*SEARCH[:-1], "trials=2", "trainer.evaluate_every_steps=2"]
    assert command(*search, f"study={tmp_path / 'study'}") == 0
    assert [row["status"] for row in _table(tmp_path / "study")] == ["done", "pruned"]
    first, second = _trials(tmp_path / "study")
    assert [first.state.name, second.state.name] == ["COMPLETE", "PRUNED"]
    assert list(first.intermediate_values) == [125, 250, 375]  # of 16 steps, in 1/1000 epoch
    assert list(second.intermediate_values) == [125]
    assert command(*search, f"study={tmp_path / 'unpruned'}", "prune=false") == 0
    assert [row["status"] for row in _table(tmp_path / "unpruned")] == ["done", "done"]


def test_a_search_in_which_all_fails_ends_early(command, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("CNNCTL_DATA", str(tmp_path))
    search = [*SEARCH, "data=mnist", f"study={tmp_path / 'study'}"]
    assert command(*search) == Exit.DATA
    assert [trial.state.name for trial in _trials(tmp_path / "study")] == ["FAIL"] * 3
    assert "the first 3 trials have all failed" in capfd.readouterr().out


BAD = {
    "nothing to search": (["model=mlp"], "there is nothing to search"),
    "an empty interval": (["optimizer.lr=interval(1,0)"], "from a smaller to a larger number"),
    "log of zero": (["optimizer.lr=tag(log,interval(0,1))"], "starts above zero"),
    "a bad option": (["model=mlp,lenett"], 'there is no model "lenett"'),
    "a bad end": (["trainer.steps=int(interval(0,5))"], "steps must be between 1"),
    "a bad number of trials": ([*SPACE, "trials=0"], "trials: must be between 1"),
    "trials that are no number": ([*SPACE, "trials=many"], "trials: must be a whole number"),
    "a sampler that is not there": ([*SPACE, "sampler=tep"], 'there is no "tep"'),
    "metrics of two kinds": (["trainer.monitor=top1,loss"], "would compare top1 with loss|loss"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_search_is_checked_before_anything_is_made(case, command, tmp_path, capfd):
    overrides, problem = BAD[case]
    outputs = tmp_path / "outputs"
    fixed = [text for text in TINY if text.partition("=")[0] not in overrides[0]]
    assert command("tune", *fixed, *overrides, f"outputs={outputs}") == Exit.CONFIG
    error = capfd.readouterr().err
    assert any(part in error for part in problem.split("|"))
    assert "Traceback" not in error
    assert not outputs.exists()


@pytest.mark.parametrize(
    "other", [["sampler=random"], ["search_seed=1"], ["seed=1"], ["optimizer.lr=0.1,0.2"]]
)
def test_another_search_into_the_same_directory_is_refused(finished, command, other, capfd):
    own = [text for text in SEARCH if text.partition("=")[0] != other[0].partition("=")[0]]
    assert command(*own, *other, f"study={finished}") == Exit.CONFIG
    assert "holds another s" in capfd.readouterr().err


def test_a_live_study_is_left_alone(finished, command):
    lock = RunDirectory.reopen(finished)
    try:
        assert command(*SEARCH, f"study={finished}") == Exit.BUSY
    finally:
        lock.release()


def test_optuna_that_is_not_installed_is_one_sentence(command, monkeypatch, capfd):
    monkeypatch.setattr(tune.importlib.util, "find_spec", lambda name: None)
    assert command(*SEARCH) == Exit.CONFIG
    assert capfd.readouterr().err == "error: tune needs Optuna\npip install 'cnnctl[optuna]'\n"


class Ask:
    """Stands for a trial; answers with what it was asked."""

    def suggest_int(self, name, low, high, step=1, log=False):
        return f"int {name} {low} {high} {step} {log}"

    def suggest_float(self, name, low, high, log):
        return {False: (low + high) / 2, True: (low * high) ** 0.5}[log]

    def suggest_categorical(self, name, options):
        return f"one of {options}"


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("a=interval(0,1)", "0.5"),
        ("a=tag(log,interval(1e-4,1))", "0.01"),
        ("a=int(interval(1,10))", "int a 1 10 1 False"),
        ("a=tag(log,int(interval(1,100)))", "int a 1 100 1 True"),
        ("a=range(1,10,4)", "int a 1 9 4 False"),
        ("a=range(0.5,2,0.5)", "one of ['0.5', '1.0', '1.5']"),
        ("a=range(3,0,-1)", "one of ['3', '2', '1']"),
        ("a=x,'y z'", "one of ['x', \"'y z'\"]"),
        ("model=glob([lenet,li*])", "one of ['lenet', 'linear']"),
    ],
)
def test_hydras_grammar_means_what_it_says(text, asked):
    fixed, space = search_space(["seed=3", text])
    (dimension,) = space.values()
    assert fixed == ["seed=3"]
    assert dimension.suggest(Ask()) == asked


def test_an_unreadable_value_is_one_sentence():
    with pytest.raises(UserError, match="cannot be read"):
        search_space(["a=interval(1"])
