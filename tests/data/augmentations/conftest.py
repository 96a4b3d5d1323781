"""Batches of random pixels, coloured boxes, and how a pipeline is made and run in the tests."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cnnctl.data.augmentations.base import Augmentation
from cnnctl.randomness import Draw
from cnnctl.structures import NO_BOX, Images, Targets

CLASSES = 10


@pytest.fixture(scope="session")
def random_pixels() -> Callable[..., torch.Tensor]:
    """(n, channels, h, w) uint8."""

    def make(n: int, channels: int = 3, h: int = 32, w: int = 32, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        size = (n, channels, h, w)
        return torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)

    return make


@pytest.fixture(scope="session")
def run() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """A pipeline on pixels and labels, as a loader runs it -> (pixels, label)."""

    def augmented(
        pipeline: Augmentation,
        pixels: torch.Tensor,
        label: torch.Tensor | None = None,
        index: torch.Tensor | None = None,
        seed: int = 0,
        epoch: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        n, size = len(pixels), (pixels.shape[2], pixels.shape[3])
        index = torch.arange(n) if index is None else index
        label = index % CLASSES if label is None else label
        images = Images(pixels.clone(), [size] * n, [size] * n)
        images, targets = pipeline.batch(
            images, Targets(index, label=label), Draw(seed, epoch, index)
        )
        assert targets.label is not None
        return images.pixels, targets.label

    return augmented


PAINTS = torch.cartesian_prod(*[torch.tensor([60, 150, 240], dtype=torch.uint8)] * 3)[::3]  # (9, 3)
BACKGROUND = 10


class Painted:
    """Images whose boxes do not touch, each solid in the colour of its class; nine classes.

    Everything else in a row is a function of the class too, so a row out of line shows.
    """

    columns = ("boxes", "labels", "crowd", "difficult", "area")  # there are no masks

    @staticmethod
    def one(h: int, w: int, seed: int = 0, rows: int = 9) -> tuple[torch.Tensor, dict[str, Any]]:
        """(3, h, w) uint8 with a box in each of ``rows`` cells of 3 x 3, and its truth."""
        random = torch.Generator().manual_seed(seed)
        labels = torch.randperm(9, generator=random)[:rows]
        corners = torch.rand(rows, 2, 2, generator=random)
        corners = corners * torch.tensor([0.3, 0.4]) + torch.tensor([0.0, 0.6])  # of a cell
        cell = torch.arange(rows)[:, None] // torch.tensor([1, 3]) % 3
        cells = torch.tensor([w, h]) / 3
        corners = (cell[:, None] + corners.mT) * cells
        low, high = corners[:, 0].floor(), corners[:, 1].ceil()
        boxes = torch.cat([low, high], 1)
        image = torch.full((3, h, w), BACKGROUND, dtype=torch.uint8)
        for label, (left, top, right, bottom) in zip(labels, boxes.int().tolist(), strict=True):
            image[:, top:bottom, left:right] = PAINTS[label][:, None, None]
        area = (high - low).prod(1) * (labels + 1)
        return image, {
            "boxes": boxes,
            "labels": labels,
            "crowd": labels % 2 == 0,
            "difficult": labels % 3 == 0,
            "area": area,
        }

    @classmethod
    def many(cls, n: int, h: int, w: int, rows: int = 9) -> tuple[Images, Targets]:
        """A resident batch of them, with a row of no box at the end of each image's."""
        images, truths = zip(*(cls.one(h, w, seed, rows) for seed in range(n)), strict=True)
        columns = {name: torch.stack([truth[name] for truth in truths]) for name in truths[0]}
        for name in cls.columns:
            column, nothing = columns[name], NO_BOX[name]
            empty = column.new_full((n, 1, *column.shape[2:]), nothing)
            columns[name] = torch.cat([column, empty], 1)
        return Images(torch.stack(images), [(h, w)] * n, [(h, w)] * n), Targets(
            torch.arange(n), **columns
        )

    @classmethod
    def truths(cls, targets: Targets) -> list[dict[str, Any]]:
        """The rows of each image that hold a box; those that hold none are all empty."""
        columns: Any = {name: getattr(targets, name) for name in cls.columns}
        gone = columns["labels"] < 0
        for name in cls.columns:
            assert (columns[name][gone] == NO_BOX[name]).all(), name
        return [
            {name: column[row][~gone[row]] for name, column in columns.items()}
            for row in range(len(gone))
        ]

    @staticmethod
    def colour(label: int) -> torch.Tensor:
        return PAINTS[label].float()

    @classmethod
    def check_rows(cls, image: torch.Tensor, truth: dict[str, Any]) -> None:
        """Rows are aligned, and no box is empty or reaches out of its image."""
        h, w = image.shape[-2:]
        boxes, labels = truth["boxes"], truth["labels"]
        assert {len(truth[name]) for name in cls.columns} == {len(labels)}
        assert torch.equal(truth["crowd"], labels % 2 == 0)
        assert torch.equal(truth["difficult"], labels % 3 == 0)
        sides = boxes[:, 2:] - boxes[:, :2]
        assert (sides > 0).all()
        assert torch.allclose(truth["area"], sides.prod(1) * (labels + 1), rtol=1e-4)
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([w, h, w, h])).all()

    @staticmethod
    def check_inside(image: torch.Tensor, truth: dict[str, Any], reach: float) -> None:
        """Boxes hold the colour of their class, all but ``reach`` pixels at their edges."""
        h, w = image.shape[-2:]
        y, x = torch.arange(h) + 0.5, torch.arange(w) + 0.5
        for label, box in zip(truth["labels"], truth["boxes"].tolist(), strict=True):
            left, top, right, bottom = box
            rows, columns = (y > top + reach) & (y < bottom - reach), x > left + reach
            inside = image[:, rows][..., columns & (x < right - reach)].float()
            assert ((inside - PAINTS[label][:, None, None]).abs() <= 1.01).all(), (label, box)

    @classmethod
    def check(cls, image: torch.Tensor, truth: dict[str, Any], reach: float = 1.6) -> None:
        """All of this, and a class that has a box has its colour in no other place.

        Args:
            reach: how far from a box's edge colours are mixed, pixels.
        """
        cls.check_rows(image, truth)
        cls.check_inside(image, truth, reach)
        h, w = image.shape[-2:]
        y, x = torch.arange(h) + 0.5, torch.arange(w) + 0.5
        for label, box in zip(truth["labels"], truth["boxes"].tolist(), strict=True):
            left, top, right, bottom = box
            own = (image.float() - PAINTS[label][:, None, None]).abs().amax(0) <= 1.01
            rows = (y > top - reach) & (y < bottom + reach)
            around = rows[:, None] & (x > left - reach) & (x < right + reach)
            assert not (own & ~around).any(), (label, box)


@pytest.fixture(scope="session")
def painted() -> type[Painted]:
    return Painted
