"""The loss of a classifier with auxiliary heads: Szegedy, Liu, Jia et al., "Going deeper with
convolutions", arXiv:1409.4842, section 5.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from cnnctl.models.base import Losses
from cnnctl.structures import Targets


def weighted_losses(outputs: Sequence[Tensor], targets: Targets, share: float) -> Losses:
    """Cross-entropy of the main head's logits (N, K), the first, and ``share`` of each other's.

    They are called "cross_entropy", "auxiliary1", "auxiliary2" and so on.
    """
    label = targets.label
    assert label is not None, "classification needs the column `label`"
    main, *others = (F.cross_entropy(logits.float(), label) for logits in outputs)
    weighted = {f"auxiliary{i}": share * loss for i, loss in enumerate(others, 1)}
    return {"cross_entropy": main, **weighted}
