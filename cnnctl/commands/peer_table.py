"""The rows of ``cnnctl bench peers``: made, timed, and shown."""

from __future__ import annotations

import contextlib
import importlib
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from cnnctl.commands import bench_file
from cnnctl.engine import processor
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
_DOERS = "leave peers= out: all that do it are taken"
_COLUMNS = ("work", "peer", "peer, images/s", "ours", "ratio", "peer's", "ours'", "target", "met")


@dataclass(frozen=True)
class Row:
    """A work by a peer and by us.

    Args:
        work: its name; about: in words; data: what the images are.
        precision: that the peer computes in.
        images: of a turn.
        theirs, ours: seconds of each turn, of the peer and of us.
        their_figures, our_figures: what was learnt or found.
        target: the least ratio; None: none is set for this kind of machine.
        note: why there are no times, where there are none.
    """

    work: str
    about: str
    peer: str
    precision: str = ""
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
        images = f", {self.images:,} images of {self.data}" if self.data else ""
        names = [self.about + images, f"{self.peer} ({self.precision})"]
        if self.ratio is None:
            return [*names, self.note, *[""] * 6]
        low, high = self.ratios.spread
        return [
            *names,
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
    compared = [name for name in asked["work"] if doing(WORKS[name], asked["peers"])]
    if not compared:
        raise UserError("none of these does any of this work", field="peers", advice=_DOERS)
    machine = chosen_machine(asked)
    workers = cores() if asked["workers"] is None else asked["workers"]
    described = describe(machine, asked, workers)
    console.facts(described)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="cnnctl-peers-") as folder:
        whole = Asked(machine, Path(folder), asked["images"], asked["root"], workers)
        for name in compared:
            if stop:
                break
            console.say(f"{name}: {WORKS[name].about}")
            made = rows_of(name, WORKS[name], asked, whole, stop)
            rows += made
            for row in made:
                console.say("  " + "  ".join(cell for cell in row.cells()[1:] if cell))
    console.say()
    if stop:
        console.say("stopped")
    if asked["markdown"]:
        console.say(markdown(described, rows))
    else:
        console.table("the same work, side by side", _COLUMNS, [row.cells() for row in rows])
    if asked["json"] is not None:
        record = {**dict(described), "rows": [row.record() for row in rows]}
        console.say(f"written: {bench_file.write(asked['json'], record)}")
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


def describe(machine: Machine, asked: dict[str, Any], workers: int) -> list[tuple[str, str]]:
    """The machine, who runs on it, and how often."""
    modules = [importlib.import_module(f"cnnctl.peers.{peer}") for peer in asked["peers"]]
    versions = []
    for package in sorted({package for module in modules for package in module.PACKAGES}):
        with contextlib.suppress(PackageNotFoundError):
            versions.append(f"{package} {version(package)}")
    threads, loaders = torch.get_num_threads(), f"{workers} processes where a loader has some"
    images = "each work's own number" if asked["images"] is None else f"{asked['images']:,}"
    return [
        *processor.described(machine.device),
        *[("beside it", ", ".join(versions))] * bool(versions),
        ("ours", machine.describe()),
        ("peers", f"{machine.device.type}, {threads} threads, {loaders}"),
        ("images", f"{images} a turn"),
        ("turns", f"{asked['turns']} of each side, in turns; {asked['budget']:g} s a work at most"),
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
    peers, kind = doing(work, asked["peers"]), target_kind(whole.machine)
    rows = {
        peer: Row(
            *(name, work.about, peer, module.PRECISION),
            target=work.targets.get(peer, {}).get(kind),
        )
        for peer, module in peers.items()
    }
    lacking = {peer: lack for peer, module in peers.items() if (lack := lacks(module, whole))}
    made = {peer: replace(rows[peer], note=f"skipped: {lack}") for peer, lack in lacking.items()}
    there = {peer: row for peer, row in rows.items() if peer not in lacking}
    try:
        with faults_explained():
            made |= _compared(there, peers, work, asked, whole, stop) if there else {}
    except UserError as error:
        made |= {peer: replace(row, note=f"skipped: {error}") for peer, row in there.items()}
    return [made[peer] for peer in peers]


def doing(work: Work, peers: Sequence[str]) -> dict[str, Any]:
    """The modules of those among ``peers`` that do a work."""
    modules = {peer: importlib.import_module(f"cnnctl.peers.{peer}") for peer in peers}
    return {peer: module for peer, module in modules.items() if work.kind in module.DOES}


def _compared(
    rows: dict[str, Row],
    peers: dict[str, Any],
    work: Work,
    asked: dict[str, Any],
    whole: Asked,
    stop: StopFlag,
) -> dict[str, Row]:
    job = importlib.import_module(f"cnnctl.peers.works.{work.kind}").made(work, whole)
    rows = {p: replace(row, data=job.data, images=job.images) for p, row in rows.items()}
    sides, made = _warmed(rows, peers, job, stop)
    times, learnt = {}, {}
    if sides and not stop:
        ours = job.ours()
        ours.run()
        runs = {OURS: ours.run, **{peer: side.run for peer, side in sides.items()}}
        device, limit = whole.machine.device, asked["budget"]
        times = interleaved(runs, asked["turns"], 0, device, limit, lambda: bool(stop))
        learnt = ours.figures() if times[OURS].seconds else {}
    for peer, row in rows.items():
        if min(len(times.get(side, NONE).seconds) for side in (peer, OURS)):
            figures = {"their_figures": sides[peer].figures(), "our_figures": learnt}
            made[peer] = replace(row, theirs=times[peer], ours=times[OURS], **figures)
        elif peer not in made:
            made[peer] = replace(row, note="stopped")
    return made


def _warmed(
    rows: dict[str, Row], peers: dict[str, Any], job: Any, stop: StopFlag
) -> tuple[dict[str, Side], dict[str, Row]]:
    """The sides, each after a turn that is not timed, and the rows of those that failed in it."""
    sides: dict[str, Side] = {}
    failed: dict[str, Row] = {}
    for peer, row in rows.items():
        if stop:
            break
        try:
            side = peers[peer].side(job)
            side.run()
            sides[peer] = side
        except UserError as error:
            failed[peer] = replace(row, note=f"skipped: {error}")
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            failed[peer] = replace(row, note=f"failed: {type(error).__name__}: {first}")
    return sides, failed


def lacks(module: Any, whole: Asked) -> str | None:
    """What a peer needs and this machine has not."""
    absent = [package for package in module.PACKAGES if find_spec(package) is None]
    if whole.machine.device.type not in getattr(module, "DEVICES", (whole.machine.device.type,)):
        return f"needs a {module.DEVICES[0].upper()} device"
    return f"pip install {' '.join(absent)}" if absent else None


def markdown(described: Sequence[tuple[str, str]], rows: Sequence[Row]) -> str:
    lines = [f"{name}: {value}  " for name, value in described]
    for cells in (_COLUMNS, ("---",) * len(_COLUMNS), *(row.cells() for row in rows)):
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines[: len(described)], "", *lines[len(described) :]])
