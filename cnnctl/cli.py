"""``cnnctl <command> key=value ...``: picks the command, composes its configuration, reports.

Imports neither torch nor Hydra until a command needs them: help, completion and mistakes in the
command line are answered at once.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cnnctl.errors import Exit, UserError, nearest
from cnnctl.outcome import run

COMMANDS = {
    "train": "train a network; resume= continues a run",
    "tune": "search hyperparameters with Optuna; study= continues a search",
    "eval": "score a checkpoint on a split of the data",
    "predict": "classes of your own images, as JSON lines and pictures",
    "info": "layers, parameters, FLOPs and receptive field of a network, before any training",
    "bench": "how fast a configuration is, beside variants of it, and where the time goes",
    "data": "which data sets there are; show, check, fetch or export one; clean what is kept",
    "proposals": "make the proposals of a data set ahead, and say how many objects they find",
}
ACTIONS = {
    "data": ("list", "show", "check", "fetch", "export", "clean"),
    "bench": ("peers",),  # without it: the configuration itself
}
_SWITCHES = {
    "-h": "help",
    "--help": "help",
    "-m": "sweep",
    "--multirun": "sweep",
    "--traceback": "traceback",
}
PRIMARY = {
    "train": "train",
    "tune": "tune",
    "info": "train",
    "bench": "train",
    "data": "train",
    "proposals": "train",
    "eval": "eval",
    "predict": "predict",
}
BESIDE = {  # keys beside those of PRIMARY
    ("info", None): "info",
    ("bench", None): "bench",
    ("bench", "peers"): "peers",
    ("data", "export"): "export",
    ("data", "clean"): "clean",
    ("proposals", None): "recall",
}


@dataclass
class Call:
    """The command line, taken apart."""

    command: str
    action: str | None = None
    overrides: list[str] = field(default_factory=list)
    sweep: bool = False
    help: bool = False
    show: bool = False  # --cfg: print the composed configuration and stop
    traceback: bool = False
    config_dir: str | None = None


def main(arguments: list[str] | None = None) -> None:
    """The entry point; ends the process with one of ``Exit``."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # How long a waiting thread spins before it sleeps. Never (a passive wait) halves the speed of
    # small networks; libgomp's own 300,000 turns keep a busy neighbour from the core.
    if "OMP_WAIT_POLICY" not in os.environ:  # which the count would overrule
        os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    for stream in (sys.stdout, sys.stderr):  # a class name may be more than the terminal can show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    sys.exit(run(lambda: _main(arguments), debug="--traceback" in arguments))


def _main(arguments: list[str]) -> int:
    if arguments[:1] in (["-sc"], ["--shell-completion"]):
        from cnnctl import completion

        return completion.run(arguments[1:])
    if arguments[:1] == ["--version"]:
        from importlib.metadata import version

        print(version("cnnctl"))
        return Exit.DONE
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        from cnnctl import help as pages

        print(pages.overview(COMMANDS))
        return Exit.DONE if arguments else Exit.CONFIG
    call = parse(arguments)
    if call.help:
        from cnnctl import help as pages

        print(pages.command(call.command, COMMANDS[call.command], PRIMARY[call.command]))
        return Exit.DONE
    return _run(call)


def parse(arguments: list[str]) -> Call:
    """Raises UserError for an unknown command, flag or action."""
    command, *rest = arguments
    if command not in COMMANDS:
        raise UserError(f'there is no command "{command}"', advice=nearest(command, COMMANDS))
    call = Call(command)
    words = iter(rest)
    for word in words:
        if word.startswith("-"):
            _flag(call, word, words)
        elif "=" not in word and command in ACTIONS and call.action is None:
            if word not in ACTIONS[command]:
                raise UserError(
                    f'{command} has no action "{word}"', advice=nearest(word, ACTIONS[command])
                )
            call.action = word
        else:
            call.overrides.append(word)
    if call.sweep and command != "train":
        raise UserError(f"{command} does not sweep", field="-m", advice="train does")
    if call.sweep and call.show:
        raise UserError("shows one job, not a sweep", field="--cfg", advice="leave -m out")
    return call


def _flag(call: Call, word: str, following: Iterator[str]) -> None:
    name, given, value = word.partition("=")
    if name in _SWITCHES and not given:
        setattr(call, _SWITCHES[name], True)
    elif name == "--cfg":
        call.show = True
        kind = value if given else next(following, "job")
        if kind != "job":
            raise UserError(f'shows "job", not "{kind}"', field="--cfg")
    elif name in ("--config-dir", "-cd"):
        call.config_dir = value if given else next(following, "")
    else:
        known = [*_SWITCHES, "--cfg", "--config-dir"]
        raise UserError(f'there is no flag "{word}"', advice=nearest(name, known))


def _run(call: Call) -> int:
    from cnnctl import compose

    if call.sweep:
        from cnnctl.commands import sweep

        return sweep.run(call.overrides, call.config_dir)
    if call.action == "peers":
        from cnnctl.commands import bench_peers

        return bench_peers.run(call.overrides, call.config_dir, call.show)
    own, others = call.overrides, []
    if call.command == "bench":
        own = [compose.quoted_list("variants", text) for text in own]
    elif call.command == "proposals":
        own = _with_defaults(own)
    beside = BESIDE.get((call.command, call.action))
    if beside is not None:
        others, own = compose.split_own(beside, own, known=_keys())
    if call.command in ("eval", "predict"):
        own, others = compose.split_own(PRIMARY[call.command], call.overrides)
    elif call.command == "tune":  # all of train's keys go on to every run
        own, others = compose.split_own("tune", call.overrides, known=_keys())
    elif call.command == "train" and _resumes(own):
        # The run's own configuration counts, not the one composed today.
        own, others = compose.split_own(
            "train", own, ("resume", "outputs", "trust"), known=("seed", "weights", "init_from")
        )
    config = compose.compose(PRIMARY[call.command], own, call.config_dir)
    if call.show:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(compose.settings(config)), end="")
        return Exit.DONE
    return _hand_over(call, config, own, others)


def _with_defaults(overrides: list[str]) -> list[str]:
    """``cnnctl proposals``: those of detection, of the usual method, where nothing else is said."""
    chosen = {text.partition("=")[0] for text in overrides}
    defaults = {"task": "detect", "proposals": "selective_search"}
    return [f"{k}={v}" for k, v in defaults.items() if k not in chosen] + overrides


def _keys() -> tuple[str, ...]:
    """The keys of ``train``, and its groups."""
    from cnnctl import compose

    return tuple(map(str, compose.compose("train", [])))


def _resumes(overrides: list[str]) -> bool:
    given = [text.partition("=")[2] for text in overrides if text.startswith("resume=")]
    return bool(given) and given[-1] not in ("", "null")


def _hand_over(call: Call, config: Any, own: list[str], others: list[str]) -> int:
    from cnnctl import compose

    settings = compose.settings(config)
    if call.command == "train":
        from cnnctl.commands import request, train

        chosen, directory = compose.choices(config), compose.run_dir(config)
        if settings.resume is not None:
            return train.run(request.resuming(settings, others))
        return train.run(request.Request.of(settings, chosen, directory))
    if call.command == "eval":
        from cnnctl.commands import eval as evaluation

        return evaluation.run(settings, others, call.config_dir)
    if call.command == "predict":
        from cnnctl.commands import predict

        return predict.run(settings, others, call.config_dir)
    if call.command == "tune":
        from cnnctl.commands import tune

        return tune.run(settings, others, call.config_dir)
    beside = BESIDE.get((call.command, call.action))
    options = compose.settings(compose.compose(beside, others)) if beside is not None else None
    if call.command == "info":
        from cnnctl.commands import draw, info

        chosen = compose.choices(config)
        info.run(settings, chosen)
        if options is not None and options.draw is not None:
            draw.run(settings, chosen, options)
        return Exit.DONE
    if call.command == "bench":
        from cnnctl.commands import bench

        assert options is not None  # BESIDE has keys of it
        return bench.run(options, own, call.config_dir)
    if call.command == "proposals":
        from cnnctl.commands import proposals

        assert options is not None  # BESIDE has keys of it
        return proposals.run(settings, compose.choices(config), options)
    from cnnctl.commands import data

    return data.run(settings, call.action or "list", options) or Exit.DONE
