"""The settings of a training run, checked, and what follows from them: machine and loaders."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import optim

from cnnctl.data.augmentations.base import Augmentation
from cnnctl.data.base import ArrayDataset, Dataset
from cnnctl.data.loaders import Loader, ResidentLoader, Share, StreamingLoader, steps_per_epoch
from cnnctl.data.proposed import Proposed
from cnnctl.engine.distributed import Processes
from cnnctl.engine.initialisation import Init
from cnnctl.engine.machine import (
    Held,
    Machine,
    choose_device,
    choose_dtype,
    cores,
    set_deterministic,
    set_threads,
)
from cnnctl.errors import Exit, UserError
from cnnctl.models.base import GradientStage, Model

MAX_WORKERS = 8
MOST_EVALUATED = 500  # images at once, where the user sets no number
_BOX = 16  # bytes: four float32
MAX_RESIDENT = 4 * 2**30  # bytes, see resident_bytes, that `auto` keeps on the device


@dataclass(frozen=True)
class Trainer:
    """Every key of ``trainer=``; conf/trainer/default.yaml says what each means.

    Raises:
        ValueError: a number is out of range.
    """

    epochs: int = 30
    steps: int | None = None
    batch_size: int = 64
    accumulate: int = 1
    clip: float | None = None
    ema: float | None = None
    lookahead: int | None = None
    decay_norm_and_bias: bool = False
    evaluate_every: int = 1
    evaluate_every_steps: int | None = None
    save_every: int | None = None
    keep_every: int | None = None
    log_every: int = 50
    monitor: str | None = None
    patience: int | None = None
    eval_batch_size: int | None = None
    loader: Literal["auto", "resident", "streaming"] = "auto"
    workers: int | None = None
    device: str = "auto"
    devices: int = 1
    sync_batchnorm: bool = False
    threads: int | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    channels_last: bool = True
    compile: bool | Literal["auto"] = False
    deterministic: bool = False
    learn_by_heart: int | None = None
    init: Init = "model"
    watch: bool = False
    score_train: bool = False
    test: bool = True
    measure_speed: bool = False
    tensorboard: bool = True

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and not 1 <= value <= 10**9:
                raise ValueError(f"{name} must be between 1 and 1e9, got {value}")
        if self.workers is not None and not 0 <= self.workers <= 1024:
            raise ValueError(f"workers must be between 0 and 1024, got {self.workers}")
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"clip must be positive, got {self.clip}")
        self._check_average()
        if self.batch_size % (self.accumulate * self.devices):
            raise ValueError(
                f"batch_size {self.batch_size} does not divide into {self.devices} devices"
                f" times {self.accumulate} accumulated parts"
            )
        if self.watch and self.compile is True:
            raise ValueError("watch looks into the network, which compile does not let it")
        if self.devices > 1 and ":" in self.device:
            raise ValueError(f"device {self.device} is one, and devices asks for {self.devices}")

    def _check_average(self) -> None:
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema must be between 0 and 1, got {self.ema}")
        if self.lookahead is not None and self.ema is None:
            raise ValueError("lookahead returns to the averaged weights: set ema too, e.g. 0.95")

    def machine(self, processes: Processes) -> Machine:
        """Choose device and precision, and fix the threads of this process."""
        if self.batch_size % (self.accumulate * processes.world):  # under torchrun
            raise UserError(
                f"{self.batch_size} does not divide into {processes.world} processes"
                f" times {self.accumulate} accumulated parts",
                field="trainer.batch_size",
            )
        set_threads(self.threads, max(self.devices, processes.world))
        set_deterministic(self.deterministic)
        device = choose_device(self.device, processes.local_rank)
        if self.sync_batchnorm and device.type != "cuda":
            raise UserError(
                f"needs GPUs, and this run is on {device.type}",
                field="trainer.sync_batchnorm",
                advice="take trainer.sync_batchnorm=false",
            )
        return Machine(device, choose_dtype(self.precision, device), self.channels_last)

    def load(
        self,
        dataset: Dataset,
        augmentation: Augmentation,
        machine: Machine,
        processes: Processes,
        seed: int,
    ) -> Loader:
        """Resident where the data is one tensor, else streaming.

        Raises:
            UserError: the data or the augmentation does not go with the batch or the loader.
        """
        if augmentation.mixes and self.batch_size == 1:
            raise UserError(
                "is 1, and this augmentation mixes the images of a batch",
                field="trainer.batch_size",
                advice="take at least 2, or another augmentation",
            )
        share = Share(processes.rank, processes.world)
        resident = isinstance(dataset, ArrayDataset)
        if self.loader == "resident" and not resident:
            raise UserError(
                "this data is read image by image (or in part) and cannot be resident",
                field="trainer.loader",
                advice="take trainer.loader=auto",
            )
        fits = resident_bytes(dataset, augmentation) <= MAX_RESIDENT
        wanted = self.loader == "resident" or (self.loader == "auto" and fits)
        if isinstance(dataset, ArrayDataset) and wanted:
            return ResidentLoader(dataset, augmentation, machine.device, seed, share)
        workers = min(cores(), MAX_WORKERS) if self.workers is None else self.workers
        return StreamingLoader(dataset, augmentation, machine.device, seed, share, workers)

    def total_steps(self, samples: int) -> tuple[int, int]:
        """(steps of a gradient stage, steps of an epoch) for ``samples`` training images.

        Raises:
            UserError: there are none, or fewer than one batch (code 3, 2).
        """
        if samples == 0:
            raise UserError("there are no training images", field="data", code=Exit.DATA)
        per_epoch = steps_per_epoch(samples, self.batch_size)
        if per_epoch == 0:
            raise UserError(
                f"a batch of {self.batch_size} is larger than the training data ({samples} images)",
                field="trainer.batch_size",
                advice=f"take at most trainer.batch_size={samples}",
            )
        return self.steps or self.epochs * per_epoch, per_epoch

    def held_at_once(self, size: tuple[int, int], processes: Processes) -> Held:
        """What a part of a training step takes in one process, and the settings that make it less.

        Args:
            size: (h, w) of the images, in pixels.
        """
        share = self.accumulate * processes.world

        def less(images: int, size: tuple[int, int]) -> str:
            smaller = f"augmentation.size={max(1, min(size) // 2)}"
            if images == 1:
                return f"take {smaller}"
            parts = next(n for n in range(2, images + 1) if images % n == 0)
            return (
                f"trainer.accumulate={self.accumulate * parts} keeps the recipe;"
                f" else trainer.batch_size={images // 2 * share} or {smaller}"
            )

        return Held("training", less, self.batch_size // share, size)

    def evaluation_batch(self, model: Model, augmentation: Augmentation) -> int:
        """Images that are evaluated at once: as many as the model can hold, where none is set."""
        if self.eval_batch_size is not None:
            return self.eval_batch_size
        if augmentation.eval_size is None:
            return 1  # images of one size at a time go through the network anyway
        return max(1, min(MOST_EVALUATED, model.eval_pixels // math.prod(augmentation.eval_size)))

    def evaluation_interval(self, per_epoch: int) -> int:
        return self.evaluate_every_steps or self.evaluate_every * per_epoch


def resident_bytes(dataset: Dataset, augmentation: Augmentation) -> int:
    """Pixels, resized, and where the images bring them along, proposals: as they are, and where
    the pixels are resized as these are too."""
    total = math.prod((len(dataset), dataset.channels, *augmentation.size))
    if isinstance(dataset, Proposed) and dataset.method.looks:  # else all images share one set
        copies = 1 if dataset.size == augmentation.size else 2
        total += copies * len(dataset) * dataset.most * _BOX
    return total


_COUNTS = (
    "epochs",
    "steps",
    "batch_size",
    "accumulate",
    "lookahead",
    "evaluate_every",
    "evaluate_every_steps",
    "save_every",
    "keep_every",
    "log_every",
    "patience",
    "eval_batch_size",
    "devices",
    "threads",
    "learn_by_heart",
)


def parameter_groups(
    parameters: list[torch.nn.Parameter],
    decay_all: bool,
    stage: GradientStage | None = None,
) -> list[dict]:
    """Groups of one pace each, two where norms and biases (everything of one dimension) do not
    decay.

    Args:
        stage: says the share of the learning rate and of the weight decay that a parameter gets,
            and for how many epochs: a group's "share", "decay" and "epochs", where they are not 1,
            1 and all.
    """
    groups: dict[tuple[float, ...], dict[str, Any]] = {}
    for parameter in parameters:
        if not parameter.requires_grad:
            continue
        pace = (1.0, 1.0, math.inf)
        if stage is not None:
            pace = (stage.rate(parameter), stage.decay(parameter), stage.epochs(parameter))
        decays = decay_all or parameter.ndim > 1
        if (*pace, decays) not in groups:
            named = zip(("share", "decay", "epochs"), pace, (1.0, 1.0, math.inf), strict=True)
            own = {name: value for name, value, usual in named if value != usual}
            none = {} if decays else {"weight_decay": 0.0}
            groups[*pace, decays] = {"params": [], **none, **own}
        groups[*pace, decays]["params"].append(parameter)
    # Those of the whole rate come first: it is the one that is shown.
    return [groups[pace] for pace in sorted(groups, key=lambda p: (p[0] == 1, p), reverse=True)]


def fused_on(
    device: torch.device, optimizer: Callable[..., optim.Optimizer]
) -> Callable[..., optim.Optimizer]:
    """``optimizer`` in one kernel for all parameters, on a GPU, where it has one and the user says
    nothing else (``+optimizer.fused=false``, ``+optimizer.foreach=true``)."""
    if device.type != "cuda":
        return optimizer
    settings = inspect.signature(optimizer).parameters
    unset = all(settings[name].default is None for name in _FORMS if name in settings)
    return functools.partial(optimizer, fused=True) if "fused" in settings and unset else optimizer


def load_optimizer(opt: optim.Optimizer, state: dict[str, Any]) -> None:
    """What ``opt`` was in a checkpoint; how its steps are computed belongs to the device of now."""
    for saved, own in zip(state["param_groups"], opt.param_groups, strict=True):
        saved.update({name: own[name] for name in _FORMS if name in own})
    opt.load_state_dict(state)


_FORMS = ("fused", "foreach")
