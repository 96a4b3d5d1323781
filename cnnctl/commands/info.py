"""``cnnctl info model=... [data=...]``: a table of the network's layers, before any training."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from cnnctl import build
from cnnctl.engine.layers import Layers, Row, layer_table
from cnnctl.errors import UserError


def run(config: DictConfig, chosen: dict[str, str]) -> None:
    """Print the layers and the totals of the network that ``cnnctl train`` would train.

    Args:
        chosen: the option of each group, for the title.

    Raises:
        UserError: the configuration does not fit together.
    """
    build.check(config, chosen)
    facts = build.facts(config)
    size = build.augmentation(config, facts).size
    model = build.model(config, facts, size)
    method = build.proposals(config)
    count = method.count if method is not None else 0
    layers = layer_table(model, facts.channels, size, count)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDE)  # into a file or a pipe: nothing is cut off
    title = (
        f"{chosen['model']} on {chosen['data']}: {facts.channels} x {size[0]} x {size[1]} pixels"
        f" -> {len(facts.classes)} classes"
    )
    console.print(table(layers, title))
    for line in [*totals(layers, count), *_truth(config, facts)]:
        console.print(line, highlight=False)


_WIDE = 160
_COLUMNS = ("layer", "type", "output", "kernel", "stride", "pad", "parameters", "FLOPs", "field")


def table(layers: Layers, title: str) -> Table:
    """One line for each layer in the order of execution."""
    printed = Table(title=title, title_justify="left", box=None, header_style="bold")
    for name in _COLUMNS:
        justify = "left" if name in ("layer", "type", "output") else "right"
        printed.add_column(name, justify=justify, overflow="fold")
    for row in layers.rows:
        printed.add_row(*_cells(row))
    return printed


def totals(layers: Layers, proposals: int = 0) -> list[str]:
    """What the whole network costs, each figure with its unit.

    Args:
        proposals: of the image, where the network was given any.
    """
    image = f"an image of {proposals:,} proposals" if proposals else "an image"
    unused = f", {layers.unused:,} of them for training alone" if layers.unused else ""
    return [
        f"parameters   {layers.parameters:,} ({scaled(layers.parameters)}){unused}",
        f"FLOPs        {scaled(layers.flops)} {image}, forward (convolutions, matrix products);"
        f" 1 multiply-add = 2 FLOPs: {scaled(layers.flops / 2)} multiply-adds",
        f"activations  {scaled(layers.activation_bytes)}B {image}, forward (float32)",
        "field        side in pixels of the input that one output position sees, borders ignored",
    ]


def _truth(config: DictConfig, facts: Any) -> list[str]:
    """What the truth of a batch takes, where a task has more ways than one to hold it."""
    task, batch_size = build.task(config), build.trainer(config).batch_size
    if task.held is None:
        return []
    data = facts
    if isinstance(facts, type):
        try:
            data = build.dataset(config, "train")
        except UserError:  # without data the network can still be looked at
            return []
    held = [f"{scaled(count)}B {way}" for way, count in task.held(data, batch_size).items()]
    return [f"truth        {', '.join(held)} (a batch of {batch_size})"]


def scaled(count: float) -> str:
    """Three digits and a decimal prefix: 40551040 -> ``40.6 M``."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * factor:  # what rounds to 1000 takes the next prefix
            return f"{count / factor:.3g} {prefix}"
    return f"{count:.0f}"


def _cells(row: Row) -> list[str]:
    return [
        row.name,
        row.kind,
        " x ".join(map(str, row.shape)),
        *(_window(pair) for pair in (row.kernel, row.stride, row.padding)),
        f"{row.parameters:,}" if row.parameters else "",
        scaled(row.flops) if row.flops else "",
        _window(row.field) if row.field else "whole image",
    ]


def _window(pair: tuple[int, int] | None) -> str:
    if pair is None:
        return ""
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]} x {pair[1]}"
