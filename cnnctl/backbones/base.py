"""What every backbone promises: named feature maps with their channels and strides.

A model asks for the maps that it needs by name ("c2" is at stride 4, "c5" at stride 32, as in Lin
et al., arXiv:1612.03144) and reads widths and strides here; neither is ever written twice.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnnctl.errors import Exit, UserError


@dataclass(frozen=True)
class Head:
    """The linear layer that a published network has on the mean of its deepest map.

    Args:
        weight: (K, D); bias: (K,).
        categories: the names of the K classes.
    """

    weight: Tensor
    bias: Tensor
    categories: tuple[str, ...]


class Backbone(nn.Module, ABC):
    """A network from pixels (N, C, H, W) to feature maps.

    A constructor may take ``in_channels`` (filled in from the data); all else is its own.

    Attributes:
        channels: of each map, by name, from the shallowest to the deepest.
        strides: input pixels between two neighbours of each map, in the same order.
        head: of the published weights that were loaded, for a classifier of the same classes.
        published: whether it starts with published weights.
    """

    channels: dict[str, int]
    strides: dict[str, int]
    head: Head | None = None
    published: bool = False

    @abstractmethod
    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Maps by name, each (N, channels[name], about H / strides[name], W / strides[name])."""

    def build_top(self, dropout: float = 0.5) -> nn.Module | None:
        """The fully connected layers that the published network has after its deepest map, from
        (R, C, h, w) to (R, D), for a model that goes on with them; None where it has none."""
        return None

    @property
    def deepest(self) -> str:
        """The name of the last map."""
        return list(self.channels)[-1]

    def require(self, size: tuple[int, int]) -> None:
        """Raise ValueError where an input of (h, w) ``size`` leaves less than a pixel of a map."""
        needed = max(self.strides.values())
        if min(size) < needed:
            raise ValueError(
                f"{type(self).__name__} needs images of at least {needed} x {needed}, "
                f"got {size[0]} x {size[1]}"
            )


def published_weights(entry: Any) -> dict[str, Tensor]:
    """The state dict of a torchvision weights entry, from torch's hub folder or the network.

    torchvision's own loader trusts a file that is already there, and unpickles it; here the digest
    in the file's name is checked every time, and nothing but tensors is read.

    Raises:
        UserError: the file is not there and cannot be downloaded, or is damaged; it says which
            file is wanted and where.
    """
    url: str = entry.url
    path = Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[1])
    if not path.is_file():
        _download(url, path)
    digest = path.stem.rsplit("-", 1)[1]  # resnet18-f37072fd.pth: the start of its SHA-256
    with path.open("rb") as file:
        if not hashlib.file_digest(file, "sha256").hexdigest().startswith(digest):
            raise UserError(
                f"the file is damaged: its SHA-256 does not start with {digest}",
                file=path,
                advice=f"delete it, and download {url} again",
                code=Exit.DATA,
            )
    return torch.load(path, map_location="cpu", weights_only=True)


def _download(url: str, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=False)
    except (OSError, HTTPException) as error:  # no network, HTTP status, cut off, disk full
        raise UserError(
            f"these weights are not on this machine and cannot be downloaded: {error}",
            file=path,
            advice=f"download {url} elsewhere and put it there, or start without published weights",
            code=Exit.DATA,
        ) from error
