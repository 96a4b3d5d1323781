"""Colour jitter: Howard, "Some improvements on deep convolutional neural network based image
classification", arXiv:1312.5402, section 2: contrast, brightness and colour by random factors.

Differs from the paper: the hue changes too; the factors are drawn from 1 - s to 1 + s, the order is
always contrast, saturation, hue, brightness, without cutting values off in between; the hue turns
in the chroma plane of YIQ, which keeps the luma.
"""

from __future__ import annotations

from torch import Tensor

from cnnctl.data.augmentations.scale_crop import recoloured
from cnnctl.data.augmentations.standard import Standard
from cnnctl.randomness import Draw


class ColourJitter(Standard):
    """Pad, crop, flip, then change the colours of each image by factors of its own.

    Grey images have brightness and contrast only.

    Args:
        brightness: the largest relative change of all values.
        contrast: of their distances from the image's mean luma.
        saturation: of their distances from their own luma.
        hue: the largest turn to either side, in turns of the colour circle.
    """

    def __init__(
        self,
        num_classes: int,
        mirror: bool,
        native: tuple[int, int] | None,
        size: int | None = None,
        padding: int | None = None,
        flip: bool | None = None,
        scale: tuple[float, float] = (0.25, 1.0),
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.4,
        hue: float = 0.1,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            mirror=mirror,
            native=native,
            size=size,
            padding=padding,
            flip=flip,
            scale=scale,
            label_smoothing=label_smoothing,
        )
        factors = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
        for name, value in factors.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {value}")
        if not 0 <= hue <= 0.5:
            raise ValueError(f"hue must be from 0 to 0.5 turns, got {hue}")
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue

    def augment(self, pixels: Tensor, label: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        pixels, label = super().augment(pixels, label, draw)
        brightness, contrast, saturation, hue = (2 * draw.uniform("colours", 4) - 1).unbind(1)
        changed = recoloured(
            pixels,
            1 + self.brightness * brightness,
            1 + self.contrast * contrast,
            1 + self.saturation * saturation,
            self.hue * hue,
        )
        return changed, label
