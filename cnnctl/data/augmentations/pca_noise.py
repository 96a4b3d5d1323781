"""AlexNet's colour noise: Krizhevsky, Sutskever, Hinton, "ImageNet classification with deep
convolutional neural networks", NIPS 2012, section 4.1, which says that it takes 1 % off the top-1
error.

To each image p1 a1 l1 + p2 a2 l2 + p3 a3 l3 is added, where p and l are the eigenvectors and
eigenvalues of the covariance C of red, green and blue, and a is normal of deviation 0.1. As the
product of C and three numbers that are normal too has the same distribution, no eigenvectors are
needed.

Differs from the paper: values are taken as 0..1, so that l is too (the paper does not say in what
unit); by default ImageNet's covariance whatever the data, by the eigenvectors and eigenvalues that
the reference training code of Torch7's ResNets had, as the paper gives no numbers; images are
cropped as by augmentation=standard (scale_jitter has AlexNet's crops, and this noise too).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from cnnctl.data.augmentations.elastic import normal
from cnnctl.data.augmentations.standard import Standard
from cnnctl.randomness import Draw

Colours = Literal["imagenet", "own"]

# Of ImageNet's red, green and blue, 0..1; a column of _VECTORS belongs to each value.
_VALUES = (0.2175, 0.0188, 0.0045)
_VECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


class PcaNoise(Standard):
    """Pad, crop, flip, then add one random colour to all pixels of each image.

    A grey image gets the mean of the three channels' shifts.

    Args:
        sigma: deviation of the three random numbers.
        colours: whose covariance: "imagenet", or "own", each image's own.
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
        sigma: float = 0.1,
        colours: Colours = "imagenet",
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
        if not 0 <= sigma < float("inf"):
            raise ValueError(f"sigma must be at least 0, got {sigma}")
        if colours not in get_args(Colours):
            raise ValueError(f'colours must be imagenet or own, got "{colours}"')
        self.sigma = sigma
        self.colours: Colours = colours

    def augment(self, pixels: Tensor, label: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        pixels, label = super().augment(pixels, label, draw)
        covariance = own_covariance(pixels) if self.colours == "own" else None
        return pca_noise(pixels, self.sigma, draw, covariance), label


def imagenet_covariance() -> Tensor:
    """(3, 3) of red, green and blue, 0..1."""
    vectors = torch.tensor(_VECTORS)
    return vectors * torch.tensor(_VALUES) @ vectors.T


def own_covariance(pixels: Tensor) -> Tensor:
    """(N, C, H, W) in 0..255 -> (N, C, C) of each image's own pixels, 0..1."""
    flat = pixels.float().flatten(2) / 255
    flat = flat - flat.mean(2, keepdim=True)
    return flat @ flat.mT / flat.shape[2]


def pca_noise(pixels: Tensor, sigma: float, draw: Draw, covariance: Tensor | None = None) -> Tensor:
    """(N, C, H, W) in 0..255, each with one colour added -> float32, cut off at 0 and 255.

    Args:
        covariance: (3, 3), or (N, C, C) of each image, of values 0..1; None is ImageNet's.
    """
    if covariance is None:
        covariance = imagenet_covariance().to(pixels.device, non_blocking=True)
    numbers = sigma * normal(draw.uniform("pca", covariance.shape[-1]))  # (N, 3)
    shift = 255 * (covariance @ numbers[:, :, None])[..., 0]
    if pixels.shape[1] != shift.shape[1]:
        shift = shift.mean(1, keepdim=True)
    return (pixels + shift[:, :, None, None]).clamp_(0, 255)
