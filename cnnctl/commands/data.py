"""``cnnctl data list|show|check|fetch|export|clean``: what data there is, and is it whole."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from cnnctl import build, compose
from cnnctl import help as pages
from cnnctl.commands import clean, export
from cnnctl.commands.data_picture import DrawSample, class_grid
from cnnctl.data.base import SPLITS, Dataset, NoSplit
from cnnctl.data.faults import Faulty
from cnnctl.data.inspection import Report, check, measure
from cnnctl.errors import Exit, UserError

_SHOWN = 20  # faults on the console; a file has all
_WIDE = 160  # columns of a table that goes into a file or a pipe


def run(config: DictConfig, action: str, options: DictConfig | None = None) -> int:
    """The exit code: ``Exit.DATA`` where ``check`` found a fault.

    Args:
        options: of ``export`` and ``clean``.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDE)
    if action == "list":
        print_list(console, config)
        return Exit.DONE
    if action == "clean":
        assert options is not None
        return clean.run(options)
    config.task = _task_for(config, export.FIELDS if action == "export" else None)
    if action == "export":
        assert options is not None
        export.run(options, lambda: all_splits(config))
        return Exit.DONE
    cls = build.data_class(config)
    if action == "fetch":
        _say(console, cls.fetch(config.data.root))
        if cls.missing(config.data.root):
            return Exit.DONE  # it is the user's own to put there
    if action == "check":
        return check_all(console, config, cls)
    splits = all_splits(config)
    _print_where(console, cls, config.data.root)
    if action == "show":
        show(console, cls.option(), splits, build.task(config).draw_sample)
    else:
        sizes = ", ".join(f"{len(data):,} {split}" for split, data in splits.items())
        _say(console, f"read and whole: {sizes}")
    return Exit.DONE


def _task_for(config: DictConfig, fields: tuple[tuple[str, ...], ...] | None = None) -> DictConfig:
    """The task's node, or where the data does not serve it, that of the first that it does.

    Args:
        fields: one of them is what the task's targets must hold, so that another will not do.
    """
    cls = build.target(config, "data")
    others = [OmegaConf.load(path) for path in sorted((compose.conf_dir() / "task").glob("*.yaml"))]
    for node in (config.task, *(other.task for other in others)):
        chosen = OmegaConf.create({"task": node, "trust": config.get("trust", [])})
        own = build.task(chosen).fields
        with contextlib.suppress(UserError):
            if fields is None or own in fields:
                cls.serving(own)
                return node
    if fields is not None:
        cls.serving(fields[0])  # says what is lacking
    return config.task


def all_splits(config: DictConfig) -> dict[str, Dataset]:
    """Every split that the data has, read."""
    splits = {}
    for split in SPLITS:
        try:
            splits[split] = build.dataset(config, split)
        except NoSplit:
            continue
    return splits


def print_list(console: Console, config: DictConfig) -> None:
    table = Table(title="data sets", title_justify="left")
    for column in ("data=", "what it is", "looked for in", "state"):
        table.add_column(column, overflow="fold")
    for path in sorted((compose.conf_dir() / "data").glob("*.yaml")):
        node = OmegaConf.create({"data": OmegaConf.load(path), "trust": config.get("trust", [])})
        cls = build.target(node, "data")
        chosen = node.data._target_ == config.data._target_
        root = config.data.root if chosen or cls.shared_root else node.data.root
        where, state = place(cls, root)
        table.add_row(path.stem, pages.explanation(path), where, state)
    console.print(table)
    _say(console, "cnnctl data show data=NAME counts and draws one; check reads every sample")


def place(cls: type[Dataset], root: str | None) -> tuple[str, str]:
    """Where a data set is looked for and whether it is there, in words."""
    missing = cls.missing(root)
    home = cls.home(root)
    where = "with the packages" if home is None and not missing else str(home or "data.root")
    if not missing:
        return where, "there"
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return where, f"needs {missing[0]}{more}"


def _print_where(console: Console, cls: type[Dataset], root: str | None) -> None:
    _say(console, f"data={cls.option()}: {place(cls, root)[0]}")


def show(
    console: Console,
    name: str,
    splits: Mapping[str, Dataset],
    draw: DrawSample | None = None,
) -> None:
    """Counts, sizes, mean and deviation on the console, and a picture grid in this folder."""
    train = splits["train"]
    console.print(count_table(splits))
    measured = measure(train)
    _say(console, f"{train.channels} channel(s), {measured.sizes}")
    for title, stated, found in (
        ("mean", train.mean, measured.mean),
        ("std ", train.std, measured.std),
    ):
        _say(console, f"{title}  stated {_numbers(stated)}  measured {_numbers(found)}")
    _say(console, f"(measured on {measured.images:,} of {len(train):,} train images)")
    _print_remarks(console, splits)
    path = Path(f"data-{name}-train.png").absolute()
    _write(path, class_grid(train, draw))
    _say(console, f"pictures: {path}")


def count_table(splits: Mapping[str, Dataset]) -> Table:
    counts = {split: data.class_counts() for split, data in splits.items()}
    table = Table("class", title="images", title_justify="left")
    for split in splits:
        table.add_column(split, justify="right")
    for row, name in enumerate(next(iter(splits.values())).classes):
        table.add_row(name, *(f"{counts[split][row]:,}" for split in splits))
    table.add_section()
    table.add_row("all", *(f"{len(data):,}" for data in splits.values()))
    return table


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in values) + ")"


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        problem = f"cannot be written: {error.strerror}"
        raise UserError(problem, file=path, code=Exit.MACHINE) from None


def check_all(console: Console, config: DictConfig, cls: type[Dataset]) -> int:
    """Read all there is, say what is wrong, and write it into a file in this folder."""
    splits, unread = readable_splits(config)
    _print_where(console, cls, config.data.root)
    report = check_with_bars(splits)
    add_unread(report, unread)
    for line in report_lines(report, _SHOWN):
        _say(console, line)
    path = Path(f"data-{cls.option()}-check.txt").absolute()
    _write(path, "".join(f"{line}\n" for line in report_lines(report)).encode())
    _say(console, f"report: {path}")
    return Exit.DATA if report.faults else Exit.DONE


def readable_splits(config: DictConfig) -> tuple[dict[str, Dataset], dict[str, UserError]]:
    """The splits that can be read, and why the others cannot.

    Raises:
        UserError: the command is wrong, or there is one reason alone and no list of faults (the
            data is not there).
    """
    splits, unread = dict[str, Dataset](), dict[str, UserError]()
    for split in SPLITS:
        try:
            splits[split] = build.dataset(config, split)
        except NoSplit:
            continue
        except UserError as error:
            if error.code != Exit.DATA:
                raise
            unread[split] = error
    reasons = {_sentences(error): error for error in unread.values()}
    if not splits and len(reasons) == 1:
        (error,) = reasons.values()
        if not isinstance(error, Faulty):
            raise error
    return splits, unread


def add_unread(report: Report, unread: Mapping[str, UserError]) -> None:
    """The faults of splits that could not be read; what several share is said once."""
    where: dict[str, list[str]] = {}
    for split, error in unread.items():
        for sentence in _sentences(error):
            where.setdefault(sentence, []).append(split)
    report.faults[:0] = [f"{', '.join(parts)}: {line}" for line, parts in where.items()]
    more = {
        _sentences(e): e.count - len(e.faults) for e in unread.values() if isinstance(e, Faulty)
    }
    report.unlisted = sum(more.values())
    report.unread = list(unread)


def _sentences(error: UserError) -> tuple[str, ...]:
    return error.faults if isinstance(error, Faulty) else (str(error),)


def check_with_bars(splits: Mapping[str, Dataset]) -> Report:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bars = {split: progress.add_task(split, total=len(data)) for split, data in splits.items()}
        return check(splits, lambda split, done: progress.update(bars[split], completed=done))


def report_lines(report: Report, most: int | None = None) -> list[str]:
    """Sentences on what was found.

    Args:
        most: the warnings, and the faults, that are told; None is all.
    """
    lines = list(report.remarks)
    for name, found in (("warning", report.warnings), ("fault", report.faults)):
        lines += [f"{name}: {line}" for line in found[:most]]
        if most is not None and (more := len(found) - most) > 0:
            lines.append(f"and {more:,} more {name}s, which the report lists")
    if report.unlisted:
        lines.append(f"and {report.unlisted:,} more faults, which are counted and not listed")
    if report.unread:
        lines.append(f"images not read until these are corrected: {', '.join(report.unread)}")
    count = len(report.faults) + report.unlisted
    read = ", ".join(f"{images:,} {split}" for split, images in report.read.items()) or "nothing"
    return [*lines, f"read {read}: {f'{count:,} fault(s)' if count else 'all whole'}"]


def _print_remarks(console: Console, splits: Mapping[str, Dataset]) -> None:
    for split, data in splits.items():
        for line in data.remarks():
            _say(console, f"{split}: {line}")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)
