"""Scenes of handwritten digits for the dense tasks: several on a textured canvas, drawn on demand.

The digits are those inside scikit-learn (cnnctl/data/digits.py), enlarged; a scene takes its digits
from its own split, so train, val and test share none. Every scene is a pure function of (seed,
split, index), with the exact class of every pixel, the instance it belongs to, and boxes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnctl.data.base import SPLITS, ArrayDataset, Dataset
from cnnctl.data.digit_rectangles import rectangles, turned
from cnnctl.data.digits import Digits
from cnnctl.randomness import Draw, key

_PLACES = 8  # tried for each digit: the one that hides least of the earlier ones is taken
_TEXTURES, _TEXTURE = 32, 256  # how many backgrounds are mixed from, and their side
_MEAN, _STD = (0.5044, 0.5027, 0.5031), (0.1983, 0.2007, 0.1978)  # of the default train scenes
_CHUNK = 32  # scenes drawn at once, so that the work stays in a cache


@dataclass(frozen=True)
class Scenes:
    """Drawn scenes and everything that is true of them.

    Args:
        pixels: (M, 3, S, S) uint8.
        instances: (M, S, S) uint8, 0 = background, n = the n-th digit of the scene; digits drawn
            later cover earlier ones.
        labels: (M, D) int64, the digit 0..9 of each instance, -1 where a scene has fewer.
        placed: (M, D, 5) the tight rectangle around the ink of each before it was turned about its
            centre and partly covered: x and y of the centre, width, height, and the angle that it
            was turned by, clockwise in radians; without meaning where a scene has fewer.
    """

    pixels: Tensor
    instances: Tensor
    labels: Tensor
    placed: Tensor

    def class_maps(self) -> Tensor:
        """(M, S, S) uint8: 0 background, 1 + digit elsewhere."""
        table = F.pad(self.labels + 1, (1, 0)).to(torch.uint8)  # (M, D + 1); instance 0 -> 0
        flat = self.instances.flatten(1)
        return table.gather(1, flat.long()).view_as(self.instances)

    def boxes(self) -> tuple[Tensor, Tensor]:
        """Tight xyxy of the visible part, (M, D, 4) float, and (M, D) int64 visible pixels.

        The right and lower sides are exclusive: a digit of one pixel has area 1. An instance that
        is absent or wholly covered has 0 pixels and a box of zeros.
        """
        count = self.labels.shape[1]
        numbers = torch.arange(1, count + 1)[:, None, None]
        boxes = torch.zeros(*self.labels.shape, 4)
        visible = torch.zeros_like(self.labels)
        for row, instances in enumerate(self.instances):
            own = instances == numbers  # (D, S, S)
            visible[row] = own.sum((1, 2))
            for axis, (low, high) in ((1, (0, 2)), (2, (1, 3))):  # columns give x, rows y
                line = own.any(axis)  # (D, S)
                side = line.shape[1]
                place = torch.arange(side)
                boxes[row, :, low] = torch.where(line, place, side).amin(1)
                boxes[row, :, high] = torch.where(line, place + 1, 0).amax(1)
        boxes[visible == 0] = 0
        return boxes, visible


class DigitScenes(ArrayDataset):
    """Square colour scenes of handwritten digits, with the class of every pixel.

    Args:
        split: train, val or test.
        root: unused; the digits are inside scikit-learn.
        size: side of a scene in pixels.
        digits: the fewest and the most digits in a scene.
        scale: the smallest and largest height of a digit, as a share of the side.
        train_images, val_images, test_images: scenes of each split.
        seed: of the drawing; the same in every run unless it is set.

    Raises:
        ValueError: a number is out of range.
    """

    fields = ("mask",)
    classes = ("background", *"0123456789")
    channels = 3
    palette = (
        *((0, 0, 0), (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48)),
        *((145, 30, 180), (70, 240, 240), (240, 50, 230), (210, 245, 60), (170, 110, 40)),
    )
    mirror = False

    def __init__(
        self,
        split: Literal["train", "val", "test"],
        root: str | None = None,
        size: int = 96,
        digits: tuple[int, int] = (3, 7),
        scale: tuple[float, float] = (0.26, 0.46),
        train_images: int = 3200,
        val_images: int = 200,
        test_images: int = 500,
        seed: int = 0,
    ) -> None:
        counts = {"train": train_images, "val": val_images, "test": test_images}
        for name, count in counts.items():
            if not 1 <= count <= 10**6:
                raise ValueError(f"{name}_images must be from 1 to a million, got {count}")
        if not 16 <= size <= 2048:
            raise ValueError(f"size must be from 16 to 2048 pixels, got {size}")
        if len(digits) != 2 or not 1 <= digits[0] <= digits[1] <= 100:
            raise ValueError(f"digits must be 1 <= fewest <= most <= 100, got {list(digits)}")
        if len(scale) != 2 or not 8 / size <= scale[0] <= scale[1] <= 1:
            raise ValueError(
                f"scale must be shares {8 / size:.3g} <= smallest <= largest <= 1,"
                f" got {list(scale)}"
            )
        self.mean, self.std = _MEAN, _STD
        self.scenes = draw_scenes(Digits(split), counts[split], size, digits, scale, seed, split)
        self.masks = self.scenes.class_maps()
        super().__init__(self.scenes.pixels, torch.empty(0))

    def columns(self) -> dict[str, Tensor]:
        return {"mask": self.masks}

    @classmethod
    def serving(cls, fields: tuple[str, ...]) -> type[Dataset]:
        if fields == ("boxes",):
            from cnnctl.data.digit_boxes import DigitBoxes

            return DigitBoxes
        if fields == ("boxes", "masks"):
            from cnnctl.data.digit_masks import DigitMasks

            return DigitMasks
        if fields == ("boxes", "keypoints"):
            from cnnctl.data.digit_points import DigitPoints

            return DigitPoints
        return super().serving(fields)

    @classmethod
    def home(cls, root: str | None) -> Path | None:
        return None

    @classmethod
    def fetch(cls, root: str | None) -> str:
        return "nothing to fetch: the digits are inside scikit-learn"


def draw_scenes(
    source: ArrayDataset,
    count: int,
    side: int,
    digits: tuple[int, int],
    scale: tuple[float, float],
    seed: int,
    split: str,
) -> Scenes:
    """``count`` scenes of ``side`` x ``side`` from the digits of one split."""
    glyphs = source.pixels.float() / 255  # (G, 1, 8, 8)
    inked = rectangles(glyphs)
    textures = _textures(seed, split)
    parts = []
    for index in torch.arange(count).split(_CHUNK):
        draw = Draw(key(seed, "scenes"), SPLITS.index(split), index)
        parts.append(_draw_chunk(glyphs, inked, source.labels, textures, side, digits, scale, draw))
    columns = zip(*parts, strict=True)
    return Scenes(*(torch.cat(column) for column in columns))


def _draw_chunk(
    glyphs: Tensor,
    inked: Tensor,
    labels: Tensor,
    textures: Tensor,
    side: int,
    digits: tuple[int, int],
    scale: tuple[float, float],
    draw: Draw,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    most = digits[1]
    n = len(draw.index)
    wanted = digits[0] + draw.integers("count", most - digits[0] + 1)  # (n, 1)
    present = torch.arange(most) < wanted  # (n, most)
    chosen = draw.integers("digit", len(glyphs), most)
    low, high = (math.log(side * share) for share in scale)
    height = (low + (high - low) * draw.uniform("height", most)).exp()  # pixels
    aspect = 0.75 + 0.35 * draw.uniform("aspect", most)  # width / height
    angle = (draw.uniform("angle", most) - 0.5) * 0.5  # radians
    place = _places(height, aspect, present, side, draw)  # (n, most, 2): x, y of the centre
    canvas = _backgrounds(textures, side, draw)  # (n, 3, side, side), 0..1
    instances = torch.zeros(n, side * side, dtype=torch.uint8)
    canvas = canvas.flatten(2)
    grey = canvas.mean(1)  # what a digit contrasts with
    window = min(side, math.ceil(side * scale[1] * 1.35) + 2)
    for slot in range(most):
        corner = (place[:, slot] - window / 2).round().long().clamp_(0, side - window)
        alpha = _glyph(
            glyphs[chosen[:, slot]],
            place[:, slot] - corner,
            height[:, slot],
            aspect[:, slot],
            angle[:, slot],
            window,
        )
        alpha *= present[:, slot, None, None]
        line = torch.arange(window)
        rows, columns = corner[:, 1:] + line, corner[:, :1] + line  # (n, window) each
        flat = (rows[:, :, None] * side + columns[:, None, :]).flatten(1)
        alpha = alpha.flatten(1)
        ink = _ink(grey.gather(1, flat), alpha, slot, draw)  # (n, 3)
        spread = flat[:, None].expand(-1, 3, -1)
        under = canvas.gather(2, spread)
        canvas.scatter_(2, spread, under.lerp(ink[:, :, None].expand_as(under), alpha[:, None]))
        covered = instances.gather(1, flat)
        instances.scatter_(1, flat, covered.masked_fill_(alpha > 0.5, slot + 1))
    grain = (draw.uniform("grain", side * side) - 0.5) * 0.08
    pixels = ((canvas + grain[:, None]) * 255).round().clamp(0, 255).to(torch.uint8)
    shape = (n, 3, side, side)
    truth = torch.where(present, labels[chosen], -1)
    placed = turned(inked[chosen], place, torch.stack([height * aspect, height], 2), angle)
    return pixels.view(shape), instances.view(n, side, side), truth, placed


def _places(height: Tensor, aspect: Tensor, present: Tensor, side: int, draw: Draw) -> Tensor:
    """(n, D, 2) centres: wholly inside the scene, each at the least hidden of some places."""
    n, most = height.shape
    half = torch.stack([height * aspect, height], 2) / 2  # (n, D, 2)
    room = (side - 2 * half).clamp(min=0)
    tried = draw.uniform("place", most * _PLACES * 2).view(n, most, _PLACES, 2)
    tried = half[:, :, None] + tried * room[:, :, None]  # (n, D, P, 2)
    centre = tried[:, :, 0].clone()
    for slot in range(1, most):
        apart = (tried[:, slot, :, None] - centre[:, None, :slot]).abs()  # (n, P, slot, 2)
        reach = half[:, slot, None, None] + half[:, None, :slot]
        shared = (reach - apart).clamp(min=0).prod(-1) * present[:, None, :slot]  # (n, P, slot)
        best = shared.sum(-1).argmin(1)
        centre[:, slot] = tried[torch.arange(n), slot, best]
    return centre


def _glyph(
    glyph: Tensor, centre: Tensor, height: Tensor, aspect: Tensor, angle: Tensor, window: int
) -> Tensor:
    """(n, window, window) 0..1: 8 x 8 digits enlarged, turned, centred at (x, y) of a window."""
    cos, sin = angle.cos(), angle.sin()
    line = torch.arange(window) + 0.5
    x = line[None, None, :] - centre[:, 0, None, None]
    y = line[None, :, None] - centre[:, 1, None, None]
    across = (x * cos[:, None, None] + y * sin[:, None, None]) / (height * aspect / 2)[
        :, None, None
    ]
    down = (y * cos[:, None, None] - x * sin[:, None, None]) / (height / 2)[:, None, None]
    grid = torch.stack([across, down], 3)
    soft = F.grid_sample(glyph, grid, mode="bicubic", padding_mode="zeros", align_corners=False)
    return ((soft[:, 0] - 0.5) * 3 + 0.5).clamp_(0, 1)  # an edge of about a pixel, not of five


def _ink(under: Tensor, alpha: Tensor, slot: int, draw: Draw) -> Tensor:
    """(n, 3): a colour that differs from the background under the digit by 0.2 to 0.6 in grey."""
    behind = (under * alpha).sum(1) / alpha.sum(1).clamp(min=1e-6)  # (n,)
    contrast = 0.2 + 0.4 * draw.uniform(f"contrast {slot}")[:, 0]
    darker = draw.chance(f"darker {slot}", 0.5)
    darker = torch.where(behind < 0.35, False, torch.where(behind > 0.65, True, darker))
    grey = behind + torch.where(darker, -contrast, contrast)
    tint = (draw.uniform(f"tint {slot}", 3) - 0.5) * 0.4
    return (grey[:, None] + tint - tint.mean(1, keepdim=True)).clamp(0, 1)


def _textures(seed: int, split: str) -> Tensor:
    """(T, 1, S, S), mean 0, deviation 1: smooth noise of several octaves."""
    generator = torch.Generator().manual_seed(key(seed, "textures", split))
    total = torch.zeros(_TEXTURES, 1, _TEXTURE, _TEXTURE)
    for cells, weight in ((4, 1.0), (16, 0.6), (64, 0.4)):
        noise = torch.randn(_TEXTURES, 1, cells, cells, generator=generator)
        total += weight * F.interpolate(noise, (_TEXTURE,) * 2, mode="bicubic")
    total -= total.mean((2, 3), keepdim=True)
    return total / total.std((2, 3), keepdim=True)


def _backgrounds(textures: Tensor, side: int, draw: Draw) -> Tensor:
    """(n, 3, side, side) in about 0.1..0.9: a colour, and two parts of textures in two tints."""
    base = 0.25 + 0.5 * draw.uniform("ground")[:, :, None, None]
    tint = (draw.uniform("ground tint", 3) - 0.5)[:, :, None, None] * 0.2
    ground = base + tint
    zoom = _TEXTURE / side
    for name in ("first", "second"):
        n = len(draw.index)
        texture = textures[draw.integers(f"{name} texture", len(textures))[:, 0]]
        extent = (0.3 + 0.7 * draw.uniform(f"{name} zoom")[:, 0]) * min(1.0, 1 / zoom * 2)
        offset = (draw.uniform(f"{name} offset", 2) * 2 - 1) * (1 - extent)[:, None]
        theta = torch.zeros(n, 2, 3)
        theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = extent, extent, offset
        grid = F.affine_grid(theta, [n, 1, side, side], align_corners=False)
        noise = F.grid_sample(texture, grid, align_corners=False, padding_mode="reflection")
        colour = (draw.uniform(f"{name} colour", 3) * 0.06)[:, :, None, None]
        ground = ground + noise * colour
    return ground.expand(-1, 3, -1, -1).clamp(0.02, 0.98)
