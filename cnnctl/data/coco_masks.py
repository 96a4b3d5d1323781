"""COCO, instance segmentation: the box and the mask of each instance, and of each crowd.

Lin et al., "Microsoft COCO: common objects in context", arXiv:1405.0312. Any file in its format
will do: one's own too, with its own categories. Polygons are drawn by the COCO API's own rule.
"""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from cnnctl.data.base import Dataset
from cnnctl.data.coco_boxes import COCOBoxes
from cnnctl.data.coco_outlines import bits_of, extents, runs_of_all

_APART = 3  # pixels that a mask may end beside its box, and
_ALIKE = 0.5  # the overlap of the two that is enough where it is more


class COCOMasks(COCOBoxes):
    """Images of any size with the boxes and masks of the categories in them; many have none.

    Boxes are what the file says, and masks end where they end: a frame is not the box. An outline
    that reaches past the edge of its image is cut off there; one that covers no pixel is left out.
    One that cannot be drawn is an error, but for the official files, where it is left out. See
    ``COCOBoxes`` for the arguments.
    """

    wanted = "mask of a pixel or more"
    fields: ClassVar[tuple[str, ...]] = ("boxes", "masks")
    uses = ("bbox",)
    uses_of_own = ("flat", "segmentation")

    @cached_property
    def drawn(self) -> np.ndarray:
        """(A, 5) of each annotation of the index, see ``extents``."""
        return extents(self.index, self.file)

    @classmethod
    def truth_alone(cls) -> type[Dataset]:
        return COCOMaskTruth

    def truth(self, index: int) -> dict[str, Tensor]:
        """The boxes and masks of a sample in the order of the file; its image is not read.

        Returns:
            The columns of ``COCOBoxes.truth``, frames (R, 4) float32 xyxy of whole pixels, crops
            (R, 3) int64 and bits (L,) uint8, see ops/masks.py.
        """
        image = int(self.chosen[index])
        h, w = self.index.sizes[image].tolist()
        rows = np.array(self.index.annotations(image), np.int64)
        rows = rows[self.usable(rows) & (self.table[self.index.categories[rows]] >= 0)]
        frames = self.drawn[rows, :4].astype(np.int64)
        parts = [
            bits_of(runs, h, (x1, y1, x2, y2))
            for runs, (x1, y1, x2, y2) in zip(
                runs_of_all(self.index, rows.tolist(), h, w), frames.tolist(), strict=True
            )
        ]
        lengths = np.array([len(part) for part in parts], np.int64)
        crops = (
            lengths.cumsum() - lengths,
            frames[:, 3] - frames[:, 1],
            frames[:, 2] - frames[:, 0],
        )
        return {
            **super().truth(index),
            "frames": torch.from_numpy(frames).float(),
            "crops": torch.from_numpy(np.stack(crops, 1)),
            "bits": torch.from_numpy(np.concatenate(parts) if parts else np.empty(0, np.uint8)),
        }

    def usable(self, rows: np.ndarray | slice) -> np.ndarray:
        """(A,) bool: annotations of the index that have a box, and a mask of one pixel at least."""
        return super().usable(rows) & (self.drawn[rows, 4] > 0)

    def outline_remarks(self, own: np.ndarray) -> list[str]:
        index, (images, _) = self.index, self.rows()
        of_polygons, of_runs = (
            np.diff(ends, prepend=0) > 0 for ends in (index.polygon_ends, index.run_ends)
        )
        outlined = of_polygons | of_runs
        nothing = outlined & (self.drawn[:, 4] == 0)
        found = (
            (own & ~outlined, "annotation(s) left out: no outline that can be drawn"),
            (own & nothing, "annotation(s) left out: the outline covers no pixel of the image"),
            (own & self._past(images), "outline(s) cut off at the edge of the image"),
            (own & index.crowds & of_polygons, "crowd(s) of polygons, where COCO has run lengths"),
            (
                own & self._apart(images),
                "mask(s) that are not where their box is (cnnctl data check lists them)",
            ),
        )
        return self.counted(found)

    def doubts(self) -> list[str]:
        """Each mask that is not where its box is."""
        images, own = self.rows()
        own &= self.table[self.index.categories] >= 0
        lines = []
        for row in (own & self._apart(images)).nonzero()[0].tolist():
            box = ", ".join(f"{side:g}" for side in self.index.boxes[row])
            mask = ", ".join(str(side) for side in self.drawn[row, :4])
            lines.append(
                f"{self.index.name(int(images[row]))}: annotation {self.index.annotation_ids[row]}:"
                f" its mask is in ({mask}), its box ({box}) (x1, y1, x2, y2)"
            )
        return lines

    def _past(self, images: np.ndarray) -> np.ndarray:
        """(A,) bool: does one of its polygons reach past the edge of its image (A,)?"""
        index = self.index
        past = np.zeros(len(images), bool)
        if not len(index.coordinate_ends):
            return past
        # (P,) of each polygon; the coordinates are x and y in turn, so each begins with an x.
        owner = np.repeat(np.arange(len(images)), np.diff(index.polygon_ends, prepend=0))
        starts = np.concatenate(([0], index.coordinate_ends[:-1] // 2))
        for axis, limit in ((0, 1), (1, 0)):
            line = index.coordinates[axis::2]
            low, high = (f.reduceat(line, starts) for f in (np.minimum, np.maximum))
            sides = index.sizes[images[owner], limit]
            past[owner[(low < -0.01) | (high > sides + 0.01)]] = True
        return past

    def _apart(self, images: np.ndarray) -> np.ndarray:
        """(A,) bool: has a box and a mask, and they differ more than in their last pixels."""
        h, w = self.index.sizes[images].T
        box = np.minimum(self.index.boxes.clip(0), np.stack((w, h, w, h), 1))
        mask = self.drawn[:, :4]
        shared = np.minimum(box, mask)[:, 2:] - np.maximum(box, mask)[:, :2]
        both = shared.clip(0).prod(1)
        either = sum((b[:, 2:] - b[:, :2]).prod(1) for b in (box, mask.astype(float))) - both
        differ = np.abs(box - mask).max(1) > _APART
        return self.usable(slice(None)) & differ & (both < _ALIKE * either)


class COCOMaskTruth(COCOMasks):
    """The boxes and masks of a file, whose images need not be there, see ``COCOTruth``."""

    images_needed = False
