"""What ``cnnctl train`` is asked to do, as plain values; and what ``resume=`` makes of a run."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cnnctl import build, compose
from cnnctl.engine import checkpoint
from cnnctl.engine.checkpoint import Checkpoints, State
from cnnctl.engine.journal import Report
from cnnctl.engine.machine import cores
from cnnctl.engine.run import RunDirectory
from cnnctl.errors import Exit, UserError

# What a resumed run may change: nothing that changes the result up to its old end, but for another
# device, number of threads or compilation, which rounds differently (and the run says so).
RESUMABLE = (
    "trainer.epochs",
    "trainer.steps",
    "trainer.workers",
    "trainer.save_every",
    "trainer.keep_every",
    "trainer.patience",
    "trainer.tensorboard",
    "trainer.watch",
    "trainer.test",
    "trainer.device",
    "trainer.threads",
    "trainer.compile",
    "data.root",
)
LENGTH = {"trainer.epochs", "trainer.steps", "trainer.patience"}  # a finished run may go on


@dataclass
class Request:
    """A training run as plain values, so that it can be sent to other processes."""

    config: dict[str, Any]
    chosen: dict[str, str]
    directory: Path
    resumed: Path | None = None  # the run directory to continue
    changed: dict[str, str] = field(default_factory=dict)  # by a resume: key -> "key: old -> new"
    reserved: bool = False  # the directory was made for this run, by a sweep
    report: Report | None = None  # told the epoch and the metrics of every evaluation

    @classmethod
    def of(cls, config: DictConfig, chosen: dict[str, str], directory: Path) -> Request:
        plain = OmegaConf.to_container(config, resolve=True)
        assert isinstance(plain, dict)
        return cls({str(name): value for name, value in plain.items()}, chosen, directory)

    def extends(self) -> bool:
        """Whether a finished run has anything left to do."""
        return bool(self.changed.keys() & LENGTH)


def resuming(settings: DictConfig, overrides: list[str]) -> Request:
    """To continue the run (or checkpoint) named in ``settings.resume`` with its own configuration.

    Raises:
        UserError: there is no such run, it is running (code 7), its checkpoint is damaged or the
            overrides would change more than ``RESUMABLE`` (code 4).
    """
    path = Path(settings.resume).expanduser().absolute()
    directory = path if path.is_dir() else path.parent
    if not path.exists():
        raise UserError("does not exist", file=path, field="resume", code=Exit.CHECKPOINT)
    if directory.joinpath("lock").exists() and os.environ.get("RANK", "0") == "0":
        RunDirectory.reopen(directory).release()  # first of all: is it running?
    state, _, _ = last_checkpoint(path)
    _check_own(state, path, settings)
    config, regrouped = compose.override(state["config"], overrides)
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    changed = _differences(state["config"], plain, "")
    refused = [line for name, line in changed.items() if name not in RESUMABLE]
    if regrouped or refused:
        raise UserError(
            "a resumed run continues as it was; this would change "
            f"{'; '.join(refused) or ', '.join(regrouped)}",
            field="resume",
            advice="leave that out, or start a new run from the weights with init_from=",
            code=Exit.CHECKPOINT,
        )
    if changed.keys() & LENGTH:
        _check_length(state, plain["trainer"], changed)
        _check_newest(state, path)
    _as_before(state, plain["trainer"])
    plain["trust"] = OmegaConf.to_container(settings.trust)
    config_values = {str(name): value for name, value in plain.items()}
    return Request(config_values, state["choices"], directory, path, changed)


def _check_own(state: State, path: Path, settings: DictConfig) -> None:
    """A checkpoint's configuration is a stranger's until it is checked; it cannot widen ``trust``.

    Raises:
        UserError: it names what may not be named, or is not one of this version (code 4).
    """
    try:
        config, _ = compose.override({**state["config"], "trust": []}, [])
        config.trust = settings.trust
        build.check(config, state["choices"])
    except build.LeftOut as error:
        raise checkpoint.foreign(path, error) from None
    except UserError as error:
        error.file, error.code = path, Exit.CHECKPOINT
        raise
    except OmegaConfBaseException as error:
        raise checkpoint.foreign(path, error) from None


def _check_newest(state: State, path: Path) -> None:
    """What came after an older checkpoint is done again, and comes out the same if nothing changes;
    with another length it would not, and best.pt might be of the history that was given up."""
    if path.is_dir() or not path.with_name("manifest.json").exists():
        return
    steps = [entry["step"] for entry in checkpoint.read_manifest(path.parent).values()]
    step = state["progress"]["total_steps"]
    if steps and max(steps) > step:
        raise UserError(
            f"is of step {step}, and the run has got to step {max(steps)} since",
            file=path,
            field="resume",
            advice=f"resume the run ({path.parent}) to change its length",
            code=Exit.CHECKPOINT,
        )


def _check_length(state: State, trainer: dict[str, Any], changed: dict[str, str]) -> None:
    """Raises UserError where ``epochs`` has no effect; the loop refuses a shorter run itself."""
    if trainer["steps"] is not None and "trainer.epochs" in changed:
        raise UserError(
            f"has no effect: trainer.steps={trainer['steps']} sets the length",
            field="trainer.epochs",
            advice="set trainer.steps=",
        )


def _as_before(state: State, trainer: dict[str, Any]) -> None:
    """What was chosen for the machine then is kept: another choice would give other bits."""
    before = state["machine"]
    if trainer["compile"] == "auto":
        trainer["compile"] = bool(state.get("compiled"))
    if trainer["threads"] is None and before["threads"] <= cores():
        trainer["threads"] = before["threads"]
    if trainer["precision"] == "auto" and trainer["device"] == "auto":
        trainer["precision"] = before["precision"]


def last_checkpoint(path: Path) -> tuple[State, Path, str | None]:
    """The newest whole checkpoint of a run, or this very file; and what was wrong with a newer."""
    if path.is_file():
        return checkpoint.read(path), path, None
    return Checkpoints(path, clean=False).load_last()


def _differences(old: Any, new: Any, path: str) -> dict[str, str]:
    """Dotted key -> ``key: old -> new`` for every value that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, str] = {}
        for name in [*old, *(name for name in new if name not in old)]:
            below = f"{path}.{name}" if path else str(name)
            if below not in ("resume", "trust", "outputs"):
                found |= _differences(old.get(name), new.get(name), below)
        return found
    return {} if old == new else {path: f"{path}: {old} -> {new}"}
