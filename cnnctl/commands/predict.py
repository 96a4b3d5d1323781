"""``cnnctl predict``: what a checkpoint says of the user's own images; its data is not needed."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from omegaconf import DictConfig
from rich.markup import escape
from torch import Tensor

from cnnctl import build
from cnnctl.commands.eval import load, locate, rebuild
from cnnctl.commands.proposing import method_of
from cnnctl.data.augmentations.base import Augmentation
from cnnctl.data.image_file import printable
from cnnctl.data.loaders import Normalize
from cnnctl.data.mask_file import write_mask
from cnnctl.data.own_images import Item, find_images, read_ahead
from cnnctl.data.palette import voc_palette
from cnnctl.data.write_numbers import write_numbers
from cnnctl.engine import checkpoint
from cnnctl.engine.checkpoint import State
from cnnctl.engine.console import Console
from cnnctl.engine.distributed import Processes
from cnnctl.engine.inference import held_at_once
from cnnctl.engine.machine import Machine, cores, faults_explained
from cnnctl.errors import Exit, UserError
from cnnctl.models.base import Model
from cnnctl.skeleton import Skeleton
from cnnctl.structures import IGNORE, Images, Predictions, collate
from cnnctl.tasks.base import Description, Task

_THREADS = 8  # that read images while the network computes
_LISTED = 20  # images on the console


@dataclass(frozen=True)
class Facts:
    """What a checkpoint knows of the data that it was trained on; see ``build.facts``."""

    classes: tuple[str, ...]
    channels: int
    size: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    palette: tuple[tuple[int, int, int], ...] | None
    skeleton: Skeleton | None = None
    mirror: bool = True

    @classmethod
    def of(cls, state: State) -> Facts:
        native = state["native"]
        return cls(
            tuple(state["classes"]),
            state["channels"],
            (native[0], native[1]) if native else None,
            tuple(state["mean"]),
            tuple(state["std"]),
            tuple((r, g, b) for r, g, b in state.get("palette") or ()) or None,
            Skeleton.of(state["skeleton"]) if state.get("skeleton") else None,
            state.get("mirror", True),
        )


def run(settings: DictConfig, overrides: list[str], config_dir: str | None = None) -> int:
    """The command; ``overrides`` change the checkpoint's own configuration.

    Returns:
        ``Exit.DATA`` where an image could not be read (the others are predicted).
    """
    top, drawn = _numbers(settings)
    path = locate(settings)
    output = _output(settings.output, path)
    files = find_images(settings.input, output)
    console = Console()
    console.say(f"checkpoint: {path}")
    state = checkpoint.read(path)
    config, _ = rebuild(state, path, settings, overrides, config_dir)
    trainer, task, facts = build.trainer(config), build.task(config), Facts.of(state)
    task = task.knowing(facts) if task.knowing is not None else task
    machine = trainer.machine(Processes())
    augmentation = build.augmentation(config, facts)
    model = load(config, state, facts, augmentation.size)
    machine.place(model).eval()
    at_once = trainer.evaluation_batch(model, augmentation)
    if "label" not in task.fields and trainer.eval_batch_size is None:
        at_once = 1  # the user's images are seen in their own size, whatever it is
    method = method_of(config, Processes())
    propose = method.propose if method is not None else None
    predictor = Predictor(task, model, machine, augmentation, facts, top, propose)
    root = Path(os.path.commonpath([os.path.normpath(file.parent) for file in files]))
    places = _places(files, root)
    said, broken, pictures = [], 0, 0
    with (
        faults_explained(predictor.held),
        _whole(output / "predictions.jsonl") as lines,
        console.progress(),
    ):
        bar = console.bar("predict", len(files))
        for item, description in predictor(files, at_once, drawn):
            bar.advance(bar.done + 1)
            if description is None:
                broken += 1
                print(f"left out: {item.problem}", file=sys.stderr)
                continue
            name = Path(os.path.normpath(item.path)).relative_to(root)
            kept = _saved(description, places[item.path], output, facts)
            record = {"file": printable(item.path), **kept}
            lines.write(json.dumps(record, allow_nan=False) + "\n")
            if item.original is not None:
                picture = task.annotate(item.original, description, facts.classes, facts.palette)
                pictures += 1
                _write_picture(picture, output / "pictures" / name)
            if len(said) < _LISTED:
                said.append((escape(printable(name)), escape(task.headline(description))))
    _summarise(console, said, len(files) - broken, broken, pictures, output)
    return Exit.DATA if broken else Exit.DONE


def _numbers(settings: DictConfig) -> tuple[int, int]:
    """``top`` and the number of images to annotate."""
    top, pictures = settings.top, settings.pictures
    if type(top) is not int or top < 1:
        raise UserError(f"must be a whole number from 1, not {top!r}", field="top")
    if type(pictures) is bool:
        return top, sys.maxsize if pictures else 0
    if type(pictures) is not int or pictures < 0:
        raise UserError(f"must be true, false or how many, not {pictures!r}", field="pictures")
    return top, pictures


def _output(wanted: Any, path: Path) -> Path:
    """The folder to write to, made where it is absent."""
    output = path.parent / "predict" if wanted is None else Path(str(wanted)).expanduser()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError("is a file, not a folder", file=output, field="output") from None
    except OSError as error:
        raise _unwritable(error, output) from None
    return output.absolute()


class Predictor:
    """Files in, descriptions out, in order."""

    def __init__(
        self,
        task: Task,
        model: Model,
        machine: Machine,
        augmentation: Augmentation,
        facts: Facts,
        top: int,
        propose: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.task, self.model, self.machine = task, model, machine
        self.augmentation, self.facts, self.top = augmentation, facts, top
        self.propose = propose
        self.normalize = Normalize(facts.mean, facts.std, machine.device)
        self.held = held_at_once(model, "prediction")

    def __call__(
        self, files: Sequence[Path], batch_size: int, drawn: int
    ) -> Iterator[tuple[Item, Description | None]]:
        """Each file and what is said of it, None where it could not be read.

        Args:
            drawn: how many, from the first, keep their original for a picture.
        """
        waiting: list[Item] = []
        readable = 0
        threads = min(_THREADS, cores())
        items = read_ahead(
            files,
            self.facts.channels,
            lambda image: self.augmentation.own(image, self.task.fields),
            threads=threads,
            ahead=batch_size + threads,
            originals=drawn,
            propose=self.propose,
        )
        for item in items:
            waiting.append(item)
            readable += item.problem is None
            if readable == batch_size:
                yield from self._describe(waiting)
                waiting, readable = [], 0
        yield from self._describe(waiting)

    @torch.inference_mode()
    def _describe(self, items: list[Item]) -> list[tuple[Item, Description | None]]:
        samples = [
            (index, item.pixels, _seen(item))
            for index, item in enumerate(items)
            if item.pixels is not None
        ]
        descriptions: Iterator[Description] = iter(())
        if samples:
            batch = collate(samples)
            self.held.see(batch.images)
            images = batch.to(self.machine.device).images
            images.pixels = self.normalize(images.pixels)
            with self.machine.autocast():
                predictions = self.model.predict(images)
            if _is_no_number(predictions, images):
                raise UserError(
                    "the network's output is not a number: the training had diverged",
                    field="checkpoint",
                    code=Exit.CHECKPOINT,
                )
            descriptions = iter(self.task.describe(predictions, self.facts.classes, self.top))
        return [
            (item, None if item.pixels is None else {**next(descriptions), "size": [*item.size]})
            for item in items
        ]


def _seen(item: Item) -> dict[str, Any]:
    """What a model may know of an image besides its pixels."""
    given = {} if item.proposals is None else {"proposals": item.proposals}
    return {"original": item.size, **given}


def _is_no_number(predictions: Predictions, images: Images) -> bool:
    for column in (predictions.log_probs, predictions.scores):
        if column is not None and column.isnan().any():
            return True
    sizes = (
        zip(predictions.mask, images.originals, strict=True) if predictions.mask is not None else ()
    )
    return any(bool((mask[:h, :w] == IGNORE).any()) for mask, (h, w) in sizes)


def _places(files: Sequence[Path], root: Path) -> dict[Path, Path]:
    """What a map of each image is called: its name with .png, as other tools look for it; behind
    the whole name where two images differ by their extension alone."""
    names = {file: Path(os.path.normpath(file)).relative_to(root) for file in files}
    count = Counter(name.with_suffix("") for name in names.values())
    return {
        file: name.with_suffix(".png")
        if count[name.with_suffix("")] == 1
        else name.with_name(f"{name.name}.png")
        for file, name in names.items()
    }


def _saved(description: Description, name: Path, output: Path, facts: Facts) -> Description:
    """A description whose maps of classes and objects are PNGs, named by where they are."""
    plain = dict(description)
    for key, value in description.items():
        if isinstance(value, Tensor):
            place = Path(f"{key}s") / name
            with _writing(output / place):
                (output / place).parent.mkdir(parents=True, exist_ok=True)
                if value.dtype == torch.uint8:
                    palette = facts.palette or voc_palette(len(facts.classes))
                    write_mask(output / place, value, palette)
                else:
                    write_numbers(output / place, value)
            plain[key] = printable(place)
    return plain


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[_Lines]:
    """A text file that is there when the block ends without an error, and else as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _writing(path):
            file = temporary.open("w", encoding="utf-8")
        with file:
            yield _Lines(file, path)
            with _writing(path):
                file.flush()
                os.fsync(file.fileno())
        with _writing(path):
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@dataclass
class _Lines:
    file: IO[str]
    path: Path

    def write(self, text: str) -> None:
        with _writing(self.path):
            self.file.write(text)


def _write_picture(picture: Tensor, place: Path) -> None:
    """``place`` with .png behind the image's own name, so that a.jpg and a.png stay apart."""
    from PIL import Image

    path = place.with_name(f"{place.name}.png")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.numpy()).save(path)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unwritable(error, path) from None


def _unwritable(error: OSError, path: Path) -> UserError:
    return UserError(
        f"cannot be written: {error.strerror or error}",
        file=printable(path),
        field="output",
        advice="output=<another folder>",
        code=Exit.MACHINE,
    )


def _summarise(
    console: Console,
    said: list[tuple[str, str]],
    predicted: int,
    broken: int,
    pictures: int,
    output: Path,
) -> None:
    if said:
        console.table(f"{predicted:,} image{'s'[: predicted != 1]}", ("image", "predicted"), said)
    if predicted > len(said):
        console.say(f"and {predicted - len(said):,} more in the file")
    console.say(f"written: {output / 'predictions.jsonl'}")
    if pictures:
        count = "" if pictures == predicted else f" of the first {pictures:,}"
        console.say(f"pictures{count}: {output / 'pictures'}")
    if broken:
        console.say(f"left out: {broken:,} that could not be read")
