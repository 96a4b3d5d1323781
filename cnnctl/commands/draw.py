"""``cnnctl info draw=anchors|proposals|targets|templates``: what a detector looks at before it
decides, what masks are learnt from, and what a trained one looks for, as a picture.

Drawn on the images of a training batch, augmented as they are; templates are of the weights alone.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from cnnctl import build
from cnnctl.commands.proposing import method_of
from cnnctl.commands.start import start
from cnnctl.data.base import Dataset
from cnnctl.data.image_file import printable
from cnnctl.data.proposed import Computed, Proposed
from cnnctl.drawing import pictures
from cnnctl.drawing.anchor_pictures import draw_anchors, draw_proposals
from cnnctl.drawing.mask_target_pictures import draw_batch_targets, stacked
from cnnctl.drawing.template_pictures import draw_templates
from cnnctl.engine.console import Console
from cnnctl.engine.distributed import Processes
from cnnctl.errors import Exit, UserError
from cnnctl.models.detection import DetectionModel, truth_of
from cnnctl.models.regions import proposed
from cnnctl.randomness import key
from cnnctl.structures import Batch

IMAGES = 4  # of a batch that are drawn

_WITH = {  # what such a network has, and one that has it
    "anchors": "model=faster_rcnn, retinanet and ssd have them",
    "proposals": "model=faster_rcnn and fast_rcnn have them",
    "targets": "with task=instance model=mask_rcnn has them",
    "templates": "model=hog_detector weights=<its run> has them",
}


def run(config: DictConfig, chosen: dict[str, str], options: DictConfig) -> None:
    """Draw, and say where the picture is.

    Args:
        chosen: the option of each group.
        options: ``draw`` and ``output``, as conf/info.yaml has them.

    Raises:
        UserError: there is nothing of that name, the model does not have it, or the picture cannot
            be written.
    """
    if options.draw not in _WITH:
        raise UserError(
            f'there is nothing to draw called "{options.draw}"', field="draw",
            advice="anchors, proposals, targets or templates",
        )  # fmt: skip
    console = Console()
    data, method = build.dataset(config, "train"), method_of(config, Processes())
    if method is not None:  # sample by sample: for some images, not for all there are
        data = Proposed(data, method, Computed(method))
    drawn = _drawn(config, data, options.draw, console)
    if drawn is None:
        raise UserError(
            f"model={chosen['model']} has no {options.draw}",
            field="draw",
            advice=_WITH[options.draw],
        )
    name = f"{options.draw}-{chosen['model']}-{chosen['data']}.png"
    path = Path(options.output or name).expanduser().absolute()
    _write(stacked(drawn), path)
    console.say(f"{options.draw}: {path}")


def _drawn(config: DictConfig, data: Dataset, what: str, console: Console) -> list[Tensor] | None:
    """A picture (H, W, 3) of each of some images; None where the model has no such thing."""
    augmentation = build.augmentation(config, data)
    torch.manual_seed(key(config.seed, "init"))  # as training starts
    model = build.model(build.with_published_weights(config), data, augmentation.size)
    if not isinstance(model, DetectionModel):
        return None
    start(config, model, data.classes, console)
    processes = Processes()
    trainer = dataclasses.replace(build.trainer(config), workers=0)
    machine = trainer.machine(processes)
    machine.place(model)
    model.eval()
    if what == "templates":
        found = draw_templates(model.templates(), data.classes)
        return None if found is None else [found]
    loader = trainer.load(data, augmentation, machine, processes, config.seed)
    count = min(trainer.batch_size, len(data))  # the first step's own
    with torch.inference_mode(), machine.autocast():
        batch = next(iter(loader.train(0, 1, count, 0))).rows(slice(IMAGES))
        if what == "targets":
            return draw_batch_targets(model, batch, data) or None
        if what == "proposals" and model.reads_proposals:
            return _given(batch, data)
        features = model.features(batch.images.pixels)
        return (_anchors if what == "anchors" else _proposals)(model, features, batch, data)


def _anchors(model: DetectionModel, features: Any, batch: Batch, data: Dataset):
    truth = truth_of(batch.images, batch.targets)
    found = model.anchors_and_matches(features, batch.images, truth)
    if found is None:
        return None
    drawn = []
    for row, image in enumerate(_images(batch, data)):
        there = (truth.labels[row] >= 0).cpu()
        place = there.cumsum(0) - 1  # of each box among those that are trained on
        matched = found[1][row].cpu()
        matched = torch.where(matched >= 0, place[matched.clamp(min=0)], matched)
        names = [data.classes[k] for k in truth.labels[row].cpu()[there].tolist()]
        boxes = truth.boxes[row].cpu()[there]
        drawn.append(draw_anchors(image, found[0], matched, boxes, names))
    return drawn


def _proposals(model: DetectionModel, features: Any, batch: Batch, data: Dataset):
    found = model.proposals(features, batch.images)
    if found is None:
        return None
    drawn = []
    for row, image in enumerate(_images(batch, data)):
        there = found[1][row] > -torch.inf
        drawn.append(draw_proposals(image, found[0][row][there], found[1][row][there].sigmoid()))
    return drawn


def _given(batch: Batch, data: Dataset) -> list[Tensor]:
    """The proposals that the images brought along, the likelier the higher their rank."""
    boxes, there = proposed(batch.images)
    drawn = []
    for image, own, some in zip(_images(batch, data), boxes, there, strict=True):
        ranks = torch.linspace(1, 0, int(some.sum()))
        drawn.append(draw_proposals(image, own[some], ranks))
    return drawn


def _images(batch: Batch, data: Dataset) -> list[Tensor]:
    """(3, h, w) uint8 of each image, without its padding."""
    pixels = pictures.displayable(batch.images.pixels, data.mean, data.std)
    sizes = batch.images.sizes
    return [image[:, :h, :w] for image, (h, w) in zip(pixels, sizes, strict=True)]


def _write(picture: Tensor, path: Path) -> None:
    from PIL import Image

    try:
        Image.fromarray(picture.numpy()).save(path, "PNG")
    except OSError as error:
        raise UserError(
            f"cannot be written: {error.strerror or error}",
            file=printable(path),
            field="output",
            advice="output=<another file>",
            code=Exit.MACHINE,
        ) from None
