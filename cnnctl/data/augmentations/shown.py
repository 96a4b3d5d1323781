"""How much of an image evaluation sees, where a protocol wants more than the network's input."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from cnnctl.data.augmentations.base import (
    Augmentation,
    centre_of_shape,
    middle,
    resize,
    resize_all,
    resized_centre,
)
from cnnctl.ops.views import Size, Views


@dataclass(frozen=True)
class Shown:
    """Images as ``views`` wants them; the same for one that is streamed and one that is resident.

    Args:
        views: it looks at more than the whole image at the network's size.
        size: (h, w) of the network's input.
        native: (h, w) of the data's images, None where they differ.
    """

    views: Views
    size: Size
    native: Size | None

    @classmethod
    def by(cls, views: Views, augmentation: Augmentation) -> None:
        """Let an augmentation show its images so, in evaluation."""
        uniform = augmentation.native is not None
        shown = cls(replace(views, uniform=uniform), augmentation.size, augmentation.native)
        augmentation.shown, augmentation.eval_size = shown, shown.largest

    @property
    def largest(self) -> Size | None:
        """(h, w) of the largest view; None where that differs between images."""
        fixed = self.views.view == "ten_crop" and len(self.views.scales) == 1
        if self.native is None and not fixed:
            return None
        return self.views.frame(self.size, self.size, max(self.views.scales))

    def resident(self, pixels: Tensor) -> Tensor:
        """(M, C, h, w) uint8 -> (M, C, h', w') uint8; as ``sample`` of each image."""
        return resize_all(pixels, self._of((pixels.shape[2], pixels.shape[3])))

    def sample(self, image: Tensor) -> Tensor:
        """One image (C, h, w) uint8 -> (C, h', w') uint8."""
        if self.native is None:
            image = middle(image)
            if self.views.view == "ten_crop":
                return self._central_square(image)
        return resize(image[None], self._of((image.shape[1], image.shape[2])))[0]

    def own(self, image: Tensor) -> Tensor:
        """As ``sample``, of a user's image; where the data's all have one size it keeps its shape
        if it is looked at densely, and else loses its ends."""
        if self.native is not None and (self.views.view != "dense" or self._squashes):
            image = centre_of_shape(image, self.native)
        return self.sample(middle(image))

    @property
    def _squashes(self) -> bool:
        """Whether the data's images get another shape in the input."""
        native = self.native or self.size
        return native[0] * self.size[1] != native[1] * self.size[0]

    def _of(self, shape: Size) -> Size:
        if self._squashes:
            return self.views.frame(self.size, self.size, max(self.views.scales))
        return self.views.shown(shape, self.size)

    def _central_square(self, image: Tensor) -> Tensor:
        """Resized so that the shorter side is the square's, and then its centre: as the paper."""
        least = min(image.shape[-2:])
        size = self.views.shown((least, least), self.size)
        if size[0] == least:  # as large as it is
            return centre_of_shape(image, (1, 1))
        return resized_centre(image, size, size[0])
