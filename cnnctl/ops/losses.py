"""Losses of a class map: cross-entropy, soft Dice, focal; class weights from frequencies."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.structures import IGNORE

TERMS = ("cross_entropy", "dice", "focal")


class SegmentationLoss(nn.Module):
    """A weighted sum of terms over the labelled pixels of a batch, in float32.

    cross_entropy: sum(w_class * w_pixel * l) / sum(w_class), as torch weighs classes. The weight
        of a pixel is not divided by again: a border that counts ten times as much (U-Net) does
        not make the rest count less.
    focal: the same mean of (1 - p)^gamma * l, with p the probability of the true class (Lin et
        al., "Focal Loss", arXiv:1708.02002, equation 5, for softmax).
    dice: 1 - 2 sum(p g) / (sum(p^2) + sum(g)) for each class that the batch's truth has, the sums
        over all its labelled pixels (Milletari et al., "V-Net", arXiv:1606.04797, section 3);
        their plain mean. Dice balances classes by itself, so no weight enters it.

    Without a labelled pixel every term is 0, and so is its gradient.

    Args:
        num_classes: K.
        terms: what each term counts, by its name in ``TERMS``; those left out are not computed.
        gamma: of the focal term; 0 makes it cross-entropy.

    Attributes:
        weight: (K,) float buffer of class weights, ones until it is written.

    Raises:
        ValueError: a term that does not exist, or no term, or a negative number.
    """

    weight: Tensor

    def __init__(self, num_classes: int, terms: dict[str, float], gamma: float = 2.0) -> None:
        super().__init__()
        unknown = [name for name in terms if name not in TERMS]
        if unknown or not terms:
            raise ValueError(f"the terms of a loss are among {list(TERMS)}, got {list(terms)}")
        if not all(share >= 0 for share in terms.values()):
            raise ValueError(f"a term of a loss counts at least 0, got {terms}")
        if not gamma >= 0:
            raise ValueError(f"gamma must be at least 0, got {gamma}")
        self.terms = dict(terms)
        self.gamma = gamma
        self.register_buffer("weight", torch.ones(num_classes))

    def forward(
        self,
        logits: Tensor,
        mask: Tensor,
        pixel_weight: Tensor | None = None,
        weighted: bool = True,
    ) -> dict[str, Tensor]:
        """Name -> scalar, already multiplied by what the term counts.

        Args:
            logits: (N, K, H, W) in any precision.
            mask: (N, H, W) uint8, 255 = ignore.
            pixel_weight: (N, H, W), of cross-entropy and focal.
            weighted: use the class weights.
        """
        with torch.autocast(logits.device.type, enabled=False):
            log_p = F.log_softmax(logits.float(), 1)
            truth = mask.long()
            losses = {}
            if "cross_entropy" in self.terms or "focal" in self.terms:
                class_weight = self.weight if weighted else torch.ones_like(self.weight)
                losses |= self._pixelwise(log_p, truth, pixel_weight, class_weight)
            if "dice" in self.terms:
                losses["dice"] = dice_loss(log_p.exp(), truth)
            return {name: share * losses[name] for name, share in self.terms.items()}

    def _pixelwise(
        self, log_p: Tensor, truth: Tensor, pixel_weight: Tensor | None, class_weight: Tensor
    ) -> dict[str, Tensor]:
        loss = F.nll_loss(log_p, truth, ignore_index=IGNORE, reduction="none")  # (N, H, W)
        of_value = F.pad(class_weight.float(), (0, IGNORE + 1 - len(class_weight)))  # (256,)
        weight = of_value[truth]  # (N, H, W), 0 where ignored
        total = weight.sum()
        total = torch.where(total > 0, total, 1)
        if pixel_weight is not None:
            weight = weight * pixel_weight
        losses = {}
        if "cross_entropy" in self.terms:
            losses["cross_entropy"] = (weight * loss).sum() / total
        if "focal" in self.terms:
            # Not below 1e-8, where the gradient of a power under 1 has no bound.
            missing = (-torch.expm1(-loss)).clamp(min=1e-8)  # 1 - p of the true class
            losses["focal"] = (weight * missing**self.gamma * loss).sum() / total
        return losses


def dice_loss(probabilities: Tensor, truth: Tensor) -> Tensor:
    """1 - soft Dice, the mean over the classes of the truth; see ``SegmentationLoss``.

    Args:
        probabilities: (N, K, H, W) float.
        truth: (N, H, W) int64, 255 = ignore.
    """
    classes = torch.arange(probabilities.shape[1], device=truth.device)
    own = truth[:, None] == classes[:, None, None]  # (N, K, H, W) bool
    labelled = (truth != IGNORE)[:, None]
    over = (0, 2, 3)
    shared = (probabilities * own).sum(over)  # (K,)
    squares = (probabilities.square() * labelled).sum(over)
    pixels = own.sum(over)  # integers: exact however many
    present = pixels > 0
    dice = 2 * shared / torch.where(present, squares + pixels, 1)
    return ((1 - dice) * present).sum() / present.sum().clamp(min=1)


def frequency_weights(kind: str, pixels: Tensor, around: Tensor) -> Tensor:
    """Weights of classes by how rare they are: (K,) float.

    A class without a pixel gets 1, the weight of an ordinary class: nothing is learnt of it, but
    where validation has it, its loss is neither hidden nor blown up.

    Args:
        kind: "none" is 1 for all. "inverse" is 1 / pixels, with a mean of 1 over the classes that
            have any. "median" divides the median of the frequencies by each class's own (Eigen
            and Fergus, arXiv:1411.4734, section 6.3.2), a frequency being ``pixels / around``.
        pixels: (K,) pixels of each class.
        around: (K,) labelled pixels, of any class, of the images that the class is in.

    Raises:
        ValueError: another kind.
    """
    if kind not in ("none", "inverse", "median"):
        raise ValueError(f"class weights are none, inverse or median, got {kind!r}")
    weights = torch.ones(len(pixels))
    present = pixels > 0
    if kind == "none" or not present.any():
        return weights
    if kind == "inverse":
        inverse = 1 / pixels[present].double()
        weights[present] = (inverse / inverse.mean()).float()
    else:
        frequency = pixels[present].double() / around[present]
        weights[present] = (frequency.quantile(0.5) / frequency).float()
    return weights
