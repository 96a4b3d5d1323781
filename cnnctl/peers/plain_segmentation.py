"""A plain training step of a segmentation network: float32, eager, channels first, torch's own
cross-entropy; where torchvision has the network, its own, with half of its auxiliary head's loss as
in its references.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torchvision.models import get_model

from cnnctl.peers.works.base import Side, TrainingStep, eager
from cnnctl.peers.works.segmenter_step import SegmenterStep
from cnnctl.structures import IGNORE

DOES = ("segmenter_step",)
PACKAGES = ("torchvision",)
PRECISION = "fp32"


def side(job: SegmenterStep) -> Side:
    model, pixels = network(job), job.batch.images.pixels
    assert job.batch.targets.mask is not None
    truth = job.batch.targets.mask.long()

    def losses() -> dict[str, Tensor]:
        made = model(pixels)
        outputs = made if isinstance(made, dict) else {"out": made}
        shares = {name: 1.0 if name == "out" else 0.5 for name in outputs}
        return {
            name: shares[name] * F.cross_entropy(logits, truth, ignore_index=IGNORE)
            for name, logits in outputs.items()
        }

    return TrainingStep(model, losses, eager(job.asked.machine.device)).side()


def network(job: SegmenterStep) -> Any:
    if not job.work.theirs:
        return job.model()
    classes = len(job.whole.classes)
    model = get_model(
        job.work.theirs, weights=None, weights_backbone=None, num_classes=classes, aux_loss=True
    )
    inside = "network."  # ours holds torchvision's under this name
    state = {k.removeprefix(inside): v for k, v in job.state.items() if k.startswith(inside)}
    model.load_state_dict(state)
    return model.to(job.asked.machine.device)
