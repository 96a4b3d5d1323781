"""torchvision's detectors and a plain segmentation step: the losses of ours, to rounding."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cnnctl.data.digit_masks import DigitMasks
from cnnctl.peers import plain_segmentation, torchvision_detection
from cnnctl.peers.works import detector_inference, detector_step, segmenter_step
from cnnctl.peers.works.base import Asked, TrainingStep, eager
from cnnctl.peers.works.table import WORKS, Work
from cnnctl.structures import collate

CPU = torch.device("cpu")


def test_ssdlite_has_torchvisions_loss(tmp_path):
    job = detector_step.made(WORKS["ssdlite"], Asked(eager(CPU), tmp_path, images=2))
    ours, theirs = job.ours(), torchvision_detection.side(job)
    ours.run()
    theirs.run()
    assert ours.figures()["loss"] > 0.5
    assert ours.figures() == pytest.approx(theirs.figures(), rel=1e-3)


def test_truth_of_torchvisions_detectors():
    """Classes are counted from 1 where there is a background; masks are whole maps."""
    data = DigitMasks("train", size=64, train_images=3)
    batch = collate([(index, *data[index]) for index in range(3)])
    job: Any = SimpleNamespace(batch=batch, work=SimpleNamespace(theirs="maskrcnn_resnet50_fpn"))
    for index, truth in enumerate(torchvision_detection.listed_truth(job)):
        _, own = data[index]
        assert torch.equal(truth["labels"], own["labels"] + 1)
        assert torch.equal(truth["boxes"], own["boxes"])
        instances = data.scenes.instances[index]
        assert torch.equal(truth["masks"].sum(0), (instances > 0).long())
        areas = truth["masks"].flatten(1).sum(1).float()
        assert torch.equal(areas, own["area"])
    job.work.theirs = "retinanet_resnet50_fpn"
    assert torch.equal(torchvision_detection.listed_truth(job)[0]["labels"], data[0][1]["labels"])


def test_figures_of_a_step_are_those_of_the_last():
    """w * w from w = 2 by steps of 0.1: the gradient 4 leads to 1.6, of which it is 3.2."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 2.0)
    side = TrainingStep(model, lambda: {"": model.weight.square().sum()}, eager(CPU), 0.1).side()
    seen = []
    for _ in range(2):
        side.run()
        seen.append(side.figures())
    assert seen == [
        {"loss": 4.0, "gradient": 4.0},
        {"loss": pytest.approx(2.56), "gradient": pytest.approx(3.2)},
    ]


def test_segmentation_has_the_plain_loss(tmp_path):
    overrides = (*WORKS["unet"].overrides, "model.width=4", "model.depth=2")
    work = Work("", "segmenter_step", overrides, 2, 32)
    job = segmenter_step.made(work, Asked(eager(CPU), tmp_path))
    ours, theirs = job.ours(), plain_segmentation.side(job)
    for _ in range(2):  # the second follows from the gradients of the first
        ours.run()
        theirs.run()
    assert ours.figures()["loss"] > 1
    assert ours.figures() == pytest.approx(theirs.figures(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in WORKS if name.endswith("_inference")])
def test_detections_are_torchvisions(name, tmp_path):
    work = WORKS[name]
    job = detector_inference.made(work, Asked(eager(CPU), tmp_path, images=1))
    ours, theirs = job.ours(), torchvision_detection.side(job)
    ours.run()
    theirs.run()
    assert ours.figures() == pytest.approx(theirs.figures(), rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, work in WORKS.items() if work.kind == "detector_step"])
def test_losses_are_torchvisions(name, tmp_path):
    """Regions of R-CNNs are drawn at random, by each in its own way."""
    images = 2 if name == "ssdlite" else 1  # its last map is one pixel, and normalised
    job = detector_step.made(WORKS[name], Asked(eager(CPU), tmp_path, images=images))
    ours, theirs = job.ours(), torchvision_detection.side(job)
    ours.run()
    theirs.run()
    close = 0.08 if name.endswith("rcnn") else 1e-3
    assert ours.figures() == pytest.approx(theirs.figures(), rel=close)


@pytest.mark.slow
def test_fcn_has_torchvisions_loss(tmp_path):
    """But for the units that dropout leaves out."""
    job = segmenter_step.made(WORKS["fcn"], Asked(eager(CPU), tmp_path, images=2))
    ours, theirs = job.ours(), plain_segmentation.side(job)
    ours.run()
    theirs.run()
    assert ours.figures() == pytest.approx(theirs.figures(), rel=0.08)
