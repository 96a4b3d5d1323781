"""Zitnick and Dollar, "Edge boxes: locating object proposals from edges", ECCV 2014.

A box is likely to hold a whole object where many contours lie wholly inside it. Sliding windows are
scored by that, refined and thinned by non-maximum suppression; that part is opencv's
(cv2.ximgproc.createEdgeBoxes).

Differs from the paper:
- edges are those of structured forests (Dollar and Zitnick 2013) only where ``model`` names their
  file, which is not part of opencv; else they are the gradient of the blurred image in the colour
  space Lab, the strongest of its three parts, thinned across the edge;
- a small image is made larger first, and the smallest area of a window is a share of the image.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from cnnctl.data.proposals.base import ProposalMethod, chosen
from cnnctl.data.proposals.opencv import corners, opencv, rgb
from cnnctl.errors import Exit, UserError

_STRONGEST = 99.9  # percentile of the gradient that is an edge of 1, so that a few pixels are not
_FAINTEST = 1.0  # gradient in Lab units a pixel (100 from black to white) that is never above 1
_LEAST = 8  # pixels of a side below which there is no room for a contour inside a box


@dataclass(frozen=True, kw_only=True)
class EdgeBoxes(ProposalMethod):
    """Windows that hold whole contours.

    Args:
        model: file of a structured forest for edges, as opencv reads it (model.yml.gz); None takes
            the gradient.
        count: the most boxes of one image.
        sides: the longer side is made at least and at most this many pixels first.
        sigma: of the blur before the gradient, pixels; unused with a model.
        alpha: overlap from one window to the next while sliding.
        beta: overlap above which a box is dropped beside a better one.
        area: of the smallest window that slides, as a share of the image; what it is refined to may
            be smaller.

    Raises:
        ValueError: a number is out of range.
    """

    model: str | None = None
    count: int = 2000
    sides: tuple[int, int] = (200, 500)
    sigma: float = 2.0
    alpha: float = 0.65
    beta: float = 0.75
    area: float = 0.005

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.sides) != 2 or not 16 <= self.sides[0] <= self.sides[1]:
            raise ValueError(
                f"sides must be two lengths of at least 16 pixels, rising, got {list(self.sides)}"
            )
        for name in ("alpha", "beta"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        if not self.sigma > 0:
            raise ValueError(f"sigma must be above 0, got {self.sigma}")
        if not 0 <= self.area < 1:
            raise ValueError(f"area must be in [0, 1), got {self.area}")

    def require(self) -> None:
        opencv()
        if self.model is not None:
            _forest(self.model)

    def settings(self) -> dict[str, Any]:
        """The model by its content: another file of the same name is another setting."""
        known = {**super().settings(), "opencv": opencv().__version__}
        if self.model is not None:
            known["model"] = hashlib.sha256(_existing(self.model).read_bytes()).hexdigest()
        return known

    def remarks(self) -> list[str]:
        if self.model is not None:
            return [f"edges by the structured forest in {self.model}"]
        return ["edges are the image's gradient: proposals.model names no structured forest"]

    def propose(self, image: Tensor) -> Tensor:
        h, w = image.shape[-2:]
        least, most = self.sides
        pixels = rgb(image, min(max(h, w, least), most))
        own = pixels.shape[:2]
        if min(own) < _LEAST:
            return chosen(np.zeros((0, 4)), (h, w), self.count)
        edges, normals = self._edges(pixels)
        windows = opencv().ximgproc.createEdgeBoxes(
            alpha=self.alpha,
            beta=self.beta,
            maxBoxes=self.count,
            minBoxArea=self.area * own[0] * own[1],
        )
        found, scores = windows.getBoundingBoxes(edges, normals)
        with_edges = corners(found)[np.ravel(scores if len(found) else []) > 0]
        scale = np.array([w / own[1], h / own[0]] * 2, np.float32)
        return chosen(with_edges * scale, (h, w), self.count)

    def _edges(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(h, w, 3) uint8 -> thin edges 0..1 and the angle across them, 0 to pi; (h, w) float32."""
        if self.model is None:
            edges, normals = gradient(pixels, self.sigma)
            return thinned(edges, normals), normals
        forest = _forest(self.model)
        edges = forest.detectEdges(pixels.astype(np.float32) / 255)
        normals = forest.computeOrientation(edges)
        return forest.edgesNms(edges, normals), normals


def gradient(pixels: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """(h, w, 3) uint8 RGB -> how strong an edge is, 0 to 1, and its normal's angle, 0 to pi."""
    cv2 = opencv()
    lab = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    lab = cv2.GaussianBlur(lab, (0, 0), sigma)
    along = [cv2.Sobel(lab, cv2.CV_32F, *axis, ksize=3, scale=1 / 8) for axis in ((1, 0), (0, 1))]
    strongest = np.square(along).sum(0).argmax(2, keepdims=True)
    x, y = (np.take_along_axis(part, strongest, 2)[:, :, 0] for part in along)
    strength = np.hypot(x, y)
    full = max(float(np.percentile(strength, _STRONGEST)), _FAINTEST)
    return np.clip(strength / full, 0, 1), (np.arctan2(y, x) % np.pi).astype(np.float32)


def thinned(edges: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """(h, w) edges, 0 where one pixel across the edge there is a stronger one (Canny 1986)."""
    cv2 = opencv()
    h, w = edges.shape
    y, x = np.mgrid[:h, :w].astype(np.float32)
    thin = edges.copy()
    for side in (-1, 1):
        across = x + side * np.cos(normals), y + side * np.sin(normals)
        beside = cv2.remap(edges, *across, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        thin[edges < beside] = 0
    return thin


def _existing(model: str) -> Path:
    path = Path(model).expanduser()
    if path.is_file():
        return path
    raise UserError(
        "there is no such file",
        file=path,
        field="proposals.model",
        advice="name a structured forest for edges (model.yml.gz), or leave it out",
    )


@functools.cache
def _forest(model: str) -> Any:
    """The structured forest of a file, read once in each process.

    Raises:
        UserError: there is none, or opencv cannot read it (code 3).
    """
    path, cv2 = _existing(model), opencv()
    try:
        return cv2.ximgproc.createStructuredEdgeDetection(str(path))
    except cv2.error:
        raise UserError(
            "opencv reads no structured forest from it",
            file=path,
            field="proposals.model",
            advice="name the model.yml.gz of opencv's extra data, or leave it out",
            code=Exit.DATA,
        ) from None
