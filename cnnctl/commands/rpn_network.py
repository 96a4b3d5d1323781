"""The network behind ``proposals=rpn``: that of a checkpoint, on the device of the run."""

from __future__ import annotations

import hashlib

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from cnnctl import build
from cnnctl.commands.eval import load, rebuild
from cnnctl.commands.predict import Facts
from cnnctl.data.loaders import Normalize
from cnnctl.data.proposals.rpn import RPN
from cnnctl.engine import checkpoint
from cnnctl.engine.distributed import Processes
from cnnctl.errors import Exit, UserError
from cnnctl.models.detection import DetectionModel
from cnnctl.structures import Images


def with_network(method: RPN, config: DictConfig, processes: Processes) -> RPN:
    """The method with the network of its checkpoint.

    Args:
        config: of the run that wants its proposals.

    Raises:
        UserError: there is no such checkpoint, or its model proposes nothing (code 4).
    """
    path = checkpoint.find(str(method.checkpoint))
    state = checkpoint.read(path)
    own = rebuild(state, path, OmegaConf.create({"trust": config.get("trust", [])}), [])[0]
    if "proposals_test" in own.model:
        own.model.proposals_test = method.count
    facts = Facts.of(state)
    augmentation = build.augmentation(own, facts)
    model = load(own, state, facts, augmentation.size)
    machine = build.trainer(config).machine(processes)
    machine.place(model).eval()
    normalize = Normalize(facts.mean, facts.std, machine.device)
    if not isinstance(model, DetectionModel):
        raise _without(path)

    @torch.inference_mode()
    def network(image: Tensor) -> Tensor:
        seen = augmentation.own(image, ("boxes",))
        (h, w), (height, width) = seen.shape[-2:], image.shape[-2:]
        images = Images(normalize(seen[None].to(machine.device)), [(h, w)], [(h, w)])
        found = model.proposals(model.features(images.pixels), images)
        if found is None:
            raise _without(path)
        boxes = found[0][0][found[1][0] > -torch.inf].float()
        return boxes * boxes.new_tensor([width / w, height / h] * 2)

    channels = facts.channels
    h, w = augmentation.size
    network(torch.zeros(channels, h, w, dtype=torch.uint8))  # has it any?
    return method.with_network(network, hashlib.sha256(path.read_bytes()).hexdigest())


def _without(path: object) -> UserError:
    return UserError(
        "its network has no proposals",
        file=str(path),
        field="proposals.checkpoint",
        advice="name a run of model=faster_rcnn or another one with an RPN",
        code=Exit.CHECKPOINT,
    )
