"""How the SVMs and box regressors of R-CNN and SPP-net are solved: their settings."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from cnnctl.models.one_stage import SMALL
from cnnctl.ops.hard_negatives import Mining

FEW_IMAGES = 500  # that all is solved on where they are small


@dataclass(frozen=True)
class Fitting:
    """How SVMs and regressors are solved.

    Args:
        svm: solve SVMs; else the network's own softmax says what a region is.
        regress: solve regressors; else boxes stay as they were proposed.
        negative: a proposal that overlaps all boxes of a class by less is a negative of it.
        near: proposals that overlap a box by more are what its class's regressor learns from.
        penalty: of the regressors' squared weights, on features of an average norm of 20.
        images: of the training data that all is solved on, the first ones; None: all.
        cache_gb: of features on the disk at most; where there were more, fewer proposals of an
            image are taken.
        mining: of the SVMs.
    """

    svm: bool = True
    regress: bool = True
    negative: float = 0.3
    near: float = 0.6
    penalty: float = 1000.0
    images: int | None = None
    cache_gb: float = 20.0
    mining: Mining = field(default_factory=Mining)

    def __post_init__(self) -> None:
        if not (self.penalty > 0 and self.cache_gb > 0 and self.mining.C > 0):
            raise ValueError(
                "ridge, cache_gb and C must be above 0, got"
                f" {self.penalty:g}, {self.cache_gb:g} and {self.mining.C:g}"
            )
        if self.images is not None and self.images < 1:
            raise ValueError(f"fit_images must be at least 1, got {self.images}")


def fitting_of(
    size: tuple[int, int],
    svm: bool,
    regress: bool,
    fit_images: int | None,
    C: float,
    ridge: float,
    cache_gb: float,
    near: float = Fitting.near,
) -> Fitting:
    """Of a model's own arguments, by their names there.

    Args:
        size: (h, w) of the training input.
        fit_images: None: all, or 500 where ``size`` is below 256.
    """
    if fit_images is None and min(size) < SMALL:
        fit_images = FEW_IMAGES
    return Fitting(
        svm=svm,
        regress=regress,
        near=near,
        penalty=ridge,
        images=fit_images,
        cache_gb=cache_gb,
        mining=Mining(C=C, seed=torch.initial_seed() % 2**31),
    )
