"""The rows of ``cnnctl bench peers``: made, timed, and shown."""

from __future__ import annotations

import contextlib
import importlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from cnnctl.engine import processor
from cnnctl.engine.checkpoint import disk_error
from cnnctl.engine.console import Console
from cnnctl.engine.distributed import Processes
from cnnctl.engine.machine import Machine, cores, faults_explained
from cnnctl.engine.signals import StopFlag
from cnnctl.engine.stopwatch import Times, interleaved
from cnnctl.engine.trainer import Trainer
from cnnctl.errors import Exit, UserError
from cnnctl.peers.works.base import Asked, Figures, Side, machine_kind
from cnnctl.peers.works.table import AMX, CUDA, PLAIN, WORKS, Work

OURS, NONE = "cnnctl", Times(())
_KINDS = {AMX: "a CPU with AMX", PLAIN: "a CPU without AMX", CUDA: "a GPU"}
_COLUMNS = ("work", "peer", "peer, images/s", "ours", "ratio", "peer's", "ours'", "target", "met")


@dataclass(frozen=True)
class Row:
    """A work by a peer and by us.

    Args:
        work: its name; about: in words; data: what the images are.
        images: of a turn.
        theirs, ours: seconds of each turn, of the peer and of us.
        their_figures, our_figures: what was learnt or found.
        target: the least ratio; None: none is set for this kind of machine.
        note: why there are no times, where there are none.
    """

    work: str
    about: str
    peer: str
    data: str = ""
    images: int = 0
    theirs: Times = NONE
    ours: Times = NONE
    their_figures: Figures = field(default_factory=dict)
    our_figures: Figures = field(default_factory=dict)
    target: float | None = None
    note: str = ""

    @property
    def ratios(self) -> Times:
        """The peer's time over ours, turn by turn: what disturbs a turn disturbs both."""
        pairs = zip(self.theirs.seconds, self.ours.seconds, strict=False)
        return Times(tuple(theirs / ours for theirs, ours in pairs))

    @property
    def ratio(self) -> float | None:
        return self.ratios.median if self.ratios.seconds else None

    @property
    def met(self) -> bool | None:
        if self.ratio is None or self.target is None:
            return None
        return self.ratio >= self.target

    def cells(self) -> list[str]:
        if self.ratio is None:
            return [self.about, self.peer, self.note, *[""] * 6]
        low, high = self.ratios.spread
        return [
            self.about,
            self.peer,
            speed(self.images / self.theirs.median),
            speed(self.images / self.ours.median),
            f"{self.ratio:.2f}x ({low:.2f}-{high:.2f})",
            _words(self.their_figures),
            _words(self.our_figures),
            "" if self.target is None else f">= {self.target:.2f}x",
            {None: "", True: "yes", False: "no"}[self.met],
        ]

    def record(self) -> dict[str, Any]:
        found = {"ratio": self.ratio, "spread": self.ratios.spread if self.ratio else None}
        return {**asdict(self), **found, "met": self.met}


def speed(images: float) -> str:
    return f"{images:,.0f}" if images >= 100 else f"{images:.3g}"


def _words(figures: Figures) -> str:
    """``loss 2.31, top1 34.5%``."""
    return ", ".join(
        f"{name} {value:.1%}" if name.startswith("top") else f"{name} {value:.4g}"
        for name, value in figures.items()
    )


def compare(asked: dict[str, Any]) -> int:
    """The whole command, its settings checked by ``bench_peers``."""
    console, stop = Console(), StopFlag()
    stop.install()
    machine = chosen_machine(asked)
    described = describe(machine)
    console.facts(described)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="cnnctl-peers-") as folder, faults_explained():
        workers = cores() if asked["workers"] is None else asked["workers"]
        whole = Asked(machine, Path(folder), asked["images"], asked["root"], workers)
        for name in asked["work"]:
            if stop:
                break
            console.say(f"{name}: {WORKS[name].about}")
            made = rows_of(name, WORKS[name], asked, whole, stop)
            rows += made
            for row in made:
                console.say("  " + "  ".join(cell for cell in row.cells()[1:] if cell))
    if asked["json"] is not None:
        _write(Path(asked["json"]), described, rows)
    console.say()
    if asked["markdown"]:
        console.say(markdown(described, rows))
    else:
        console.table("the same work, side by side", _COLUMNS, [row.cells() for row in rows])
    return 128 + stop.signum if stop.signum is not None else Exit.DONE


def chosen_machine(asked: dict[str, Any]) -> Machine:
    """As ``cnnctl train`` chooses; the threads are those of both."""
    names = ("device", "precision", "threads")
    try:
        return Trainer(**{name: asked[name] for name in names}).machine(Processes())
    except ValueError as error:
        raise UserError(str(error), field="threads") from None
    except UserError as error:  # the keys have no group here
        for name in ("field", "advice"):
            said = getattr(error, name)
            setattr(error, name, said and said.replace("trainer.", ""))
        raise


def describe(machine: Machine) -> list[tuple[str, str]]:
    """The machine, and who runs on it."""
    versions = []
    for package in ("torchvision", "timm", "lightning", "airbench"):
        with contextlib.suppress(PackageNotFoundError):
            versions.append(f"{package} {version(package)}")
    return [
        *processor.described(machine.device),
        ("beside it", ", ".join(versions)),
        ("ours", machine.describe()),
        ("peers", f"{machine.device.type}, {torch.get_num_threads()} threads, fp32"),
        ("targets", f"those of {_KINDS[target_kind(machine)]}"),
    ]


def target_kind(machine: Machine) -> str:
    """float32 asked for is float32 hardware, whatever else it could do."""
    kind = machine_kind(machine.device)
    return PLAIN if kind == AMX and machine.dtype == torch.float32 else kind


def rows_of(
    name: str, work: Work, asked: dict[str, Any], whole: Asked, stop: StopFlag
) -> list[Row]:
    """A work against all its peers, interleaved with each other: ours is timed once for all."""
    peers = {peer: importlib.import_module(f"cnnctl.peers.{peer}") for peer in asked["peers"]}
    peers = {peer: module for peer, module in peers.items() if work.kind in module.DOES}
    kind = target_kind(whole.machine)
    rows = {p: Row(name, work.about, p, target=work.targets.get(p, {}).get(kind)) for p in peers}
    lacking = {peer: lack for peer, module in peers.items() if (lack := lacks(module, whole))}
    noted = {peer: _noted(rows[peer], f"skipped: {lack}") for peer, lack in lacking.items()}
    there = {peer: module for peer, module in peers.items() if peer not in lacking}
    if not there:
        return list(noted.values())
    try:
        job = importlib.import_module(f"cnnctl.peers.works.{work.kind}").made(work, whole)
    except UserError as error:
        if error.code != Exit.DATA:
            raise
        return [_noted(row, f"skipped: {error}") for row in rows.values()]
    sides: dict[str, Side] = {}
    for peer, module in there.items():
        try:
            sides[peer] = module.side(job)
            sides[peer].run()  # its first turn is not timed
        except Exception as error:
            if isinstance(error, UserError):
                raise
            sides.pop(peer, None)
            first = (str(error).splitlines() or [""])[0]
            noted[peer] = _noted(rows[peer], f"failed: {type(error).__name__}: {first}")
    if sides:
        ours = job.ours()
        ours.run()
        runs = {OURS: ours.run, **{peer: side.run for peer, side in sides.items()}}
        times = interleaved(
            runs, asked["turns"], 0, whole.machine.device, asked["budget"], lambda: bool(stop)
        )
        learnt = ours.figures()
        for peer, side in sides.items():
            noted[peer] = _timed(rows[peer], job, times[peer], times[OURS], side.figures(), learnt)
    return [noted[peer] for peer in peers]


def lacks(module: Any, whole: Asked) -> str | None:
    """What a peer needs and this machine has not."""
    absent = [package for package in module.PACKAGES if find_spec(package) is None]
    if whole.machine.device.type not in getattr(module, "DEVICES", (whole.machine.device.type,)):
        return f"needs a {module.DEVICES[0].upper()} device"
    return f"pip install {' '.join(absent)}" if absent else None


def _noted(row: Row, note: str) -> Row:
    return replace(row, note=note)


def _timed(
    row: Row, job: Any, theirs: Times, ours: Times, their_figures: Figures, our_figures: Figures
) -> Row:
    return replace(
        row,
        data=job.data,
        images=job.images,
        theirs=theirs,
        ours=ours,
        their_figures=their_figures,
        our_figures=our_figures,
    )


def _write(path: Path, described: Sequence[tuple[str, str]], rows: Sequence[Row]) -> None:
    record = {**dict(described), "rows": [row.record() for row in rows]}
    try:
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise disk_error(error, path) from None


def markdown(described: Sequence[tuple[str, str]], rows: Sequence[Row]) -> str:
    lines = [f"{name}: {value}  " for name, value in described]
    for cells in (_COLUMNS, ("---",) * len(_COLUMNS), *(row.cells() for row in rows)):
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines[: len(described)], "", *lines[len(described) :]])
