"""SPP-net: pyramids of projected regions, scales, what each stage trains, what it says."""

from __future__ import annotations

import copy
import functools
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model

from cnnctl.backbones import resnet
from cnnctl.backbones.resnet import ResNet
from cnnctl.backbones.vgg import VGG
from cnnctl.engine import checkpoint
from cnnctl.engine.loop import Loop
from cnnctl.models import sppnet
from cnnctl.models.base import FitStage, GradientStage
from cnnctl.models.fitted_regions import FittedRegions
from cnnctl.models.sppnet import SPPNet, placed_length
from cnnctl.ops.clock import CONVOLUTION, POST_PROCESSING, REGIONS, Clock
from cnnctl.ops.projection import projected
from cnnctl.ops.regions import roi_pool, spatial_pyramid_pool
from cnnctl.structures import Batch, Images, Predictions, Targets

BOXES = torch.tensor([[[10, 20, 50, 60], [0, 0, 0, 0]], [[5, 5, 25, 29], [40, 3, 64, 60]]]).float()
LABELS = torch.tensor([[1, -1], [0, 2]])


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_boxes(images: int, count: int, side: int = 64) -> Tensor:
    """(N, P, 4) inside images of ``side``, none the same."""
    generator = torch.Generator().manual_seed(2)
    low = torch.rand(images, count, 2, generator=generator) * (side - 16)
    size = 8 + torch.rand(images, count, 2, generator=generator) * 24
    return torch.cat([low, (low + size).clamp(max=side)], 2)


def images_of(pixels: Tensor, proposals: Tensor) -> Images:
    sizes = [(pixels.shape[2], pixels.shape[3])] * len(pixels)
    return Images(pixels, sizes, list(sizes), proposals)


def targets_of(boxes: Tensor, labels: Tensor) -> Targets:
    return Targets(torch.arange(len(boxes)), boxes=boxes, labels=labels)


def batch(count: int = 30) -> tuple[Images, Targets]:
    return images_of(noise(2, 3, 64, 64), some_boxes(2, count)), targets_of(BOXES, LABELS)


def small(**options: Any) -> SPPNet:
    """A network whose scores differ from region to region."""
    return copy.deepcopy(_small(**options))


@functools.cache
def _small(**options: Any) -> SPPNet:
    torch.manual_seed(0)
    model = SPPNet(3, ResNet(18), (64, 64), **{"score": 0.0, **options})
    model.cls_score.weight.data.normal_(std=0.3)
    return model


def columns(found: Predictions) -> tuple[Tensor, Tensor, Tensor]:
    assert found.boxes is not None
    assert found.scores is not None
    assert found.labels is not None
    return found.boxes, found.scores, found.labels


def test_roi_pooling_is_a_pyramid_of_one_level():
    maps, boxes = noise(2, 5, 9, 13), some_boxes(2, 6, side=140).flatten(0, 1)
    image = torch.arange(2).repeat_interleave(6)
    for n in (1, 3, 7):
        one = spatial_pyramid_pool(maps, boxes, image, (n,), 1 / 16)
        assert torch.equal(one, roi_pool(maps, boxes, image, (n, n), 1 / 16).flatten(1))


@pytest.mark.parametrize("size", [(64, 64), (33, 97), (71, 50), (16, 130), (9, 9)])
def test_a_fixed_length_for_every_size_of_an_image(size):
    """Its point: whatever the image and the window, dense layers see the same number of inputs."""
    model = small(levels=(1, 2, 3, 6)).eval()
    h, w = size
    boxes = torch.tensor([[0, 0, w, h], [0, 0, w / 3, h / 2], [w - 1, h - 1, w, h]])
    with torch.no_grad():
        features = model.features(noise(1, 3, h, w))
        pooled = model.pooled(features, boxes, torch.zeros(3).long())
        assert pooled.shape == (3, model.length) == (3, 128 * 50)
        assert model.top(pooled).shape == (3, 256)
        whole = [F.adaptive_max_pool2d(features.maps[0], n).flatten(1) for n in (1, 2, 3, 6)]
    rows, wide = features.maps[0].shape[2:]
    inside = projected(boxes[:1], 8, (rows, wide), model.centre)[0]
    if inside.tolist() == [0, 0, wide - 1, rows - 1]:
        torch.testing.assert_close(pooled[:1], torch.cat(whole, 1))


def test_a_region_is_the_pyramid_of_its_part_of_the_map():
    """Against torch's own adaptive pooling of what the projection cuts out."""
    model = small(levels=(1, 2, 4)).eval()
    boxes, image = some_boxes(2, 8).flatten(0, 1), torch.arange(2).repeat_interleave(8)
    with torch.no_grad():
        features = model.features(noise(2, 3, 64, 64))
        found = model.pooled(features, boxes, image)
        (maps,) = features.maps
        cells = projected(boxes, 8, (8, 8), 0.5).tolist()  # a ResNet's first centre
        for row, (left, top, right, bottom) in enumerate(cells):
            part = maps[int(image[row])][:, top : bottom + 1, left : right + 1]
            levels = [F.adaptive_max_pool2d(part, n).flatten() for n in (1, 2, 4)]
            torch.testing.assert_close(found[row], torch.cat(levels))


def test_numbers_of_the_paper_and_of_small_images():
    with torch.device("meta"):
        paper = SPPNet(20, VGG(16), (600, 1000))
        little = SPPNet(10, ResNet(18), (96, 96))
    assert (paper.levels, paper.length, paper.stride) == ((1, 2, 3, 6), 25600, 16)
    assert paper.window == pytest.approx(600 * 224 / 688)
    assert paper.fitted.fitting.near == 0.5
    assert (paper.centre, paper.regions, paper.lowest) == (8, 64, 0.1)
    dense = [layer for layer in paper.top.children() if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in dense] == [
        *((25600, 4096), (4096, 4096))
    ]
    assert [layer.p for layer in paper.top.children() if isinstance(layer, nn.Dropout)] == [0.5] * 2
    assert (little.levels, little.length, little.stride) == ((1, 2, 4), 128 * 21, 8)
    assert little.window == pytest.approx(31.26, abs=0.01)  # of 96 what 224 is of 688
    assert SPPNet.reads_proposals
    assert placed_length((1, 2, 3, 6), 256) == 12800  # all of ZF-5's
    assert placed_length((1, 2, 3, 6), 512) == 7168
    assert placed_length((6,), 512) == 18432


@pytest.mark.parametrize(
    ("side", "scale"), [(224, 2), (224 / 0.7, 0), (224 / 1.74, 4), (400, 0), (20, 4), (190, 3)]
)
def test_a_window_is_seen_where_it_is_nearest_to_224(side, scale):
    with torch.device("meta"):
        model = SPPNet(20, ResNet(18), (688, 688), scales=(0.70, 0.84, 1.0, 1.26, 1.74))
    factors = [(one, one) for one in model.scales]
    box = torch.tensor([[3.0, 5, 3 + side, 5 + side]])
    assert model.scale_of(sppnet.Features([], factors), box).tolist() == [scale]


def test_scales():
    """Regions of one scale are those of a network that sees that scale alone, in their order."""
    model = small(scales=(0.5, 1.0, 2.0)).eval()
    pixels, boxes = noise(2, 3, 64, 64), some_boxes(2, 20)
    flat, image = boxes.flatten(0, 1), torch.arange(2).repeat_interleave(20)
    with torch.no_grad():
        features = model.features(pixels)
        assert [maps.shape[2] for maps in features.maps] == [4, 8, 16]
        found, scale = model.pooled(features, flat, image), model.scale_of(features, flat)
        assert sorted(set(scale.tolist())) == [0, 1, 2]
        for number in range(3):
            model.scales = (0.5, 1.0, 2.0)[number : number + 1]
            alone = model.pooled(model.features(pixels), flat, image)
            own = scale == number
            torch.testing.assert_close(found[own], alone[own])


def gradients(model: SPPNet, stage: GradientStage) -> set[str]:
    """Names of what one step of a stage trains, as the loop has it."""
    wanted = {id(parameter) for parameter in stage.params()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in wanted)
    model.zero_grad(set_to_none=True)
    model.train()
    for module in stage.still():
        module.eval()
    losses = stage.loss(*batch())
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.abs().sum() > 0, name
    return {name for name, p in model.named_parameters() if p.grad is not None}


def test_stages():
    """Section 4.1: dense layers alone on fixed convolutions, SVMs, regressors; convolutions are
    trained before where they would be random."""
    model = small()
    first, second, svm, boxes = model.stages()
    assert isinstance(first, GradientStage)
    assert isinstance(second, GradientStage)
    names = dict(model.named_parameters()).keys()
    assert gradients(model, first) == names
    before = {name: value.clone() for name, value in model.trunk.state_dict().items()}
    assert gradients(model, second) == {name for name in names if not name.startswith("trunk")}
    for name, value in model.trunk.state_dict().items():  # statistics of batches too
        assert torch.equal(value, before[name]), name
    assert [(one.name, one.evaluate) for one in model.stages()] == [
        *(("convolutions", False), ("finetune", False), ("svm", False), ("boxes", True))
    ]
    assert isinstance(svm, FitStage)
    assert isinstance(boxes, FitStage)
    plain = small(svm=False, regress=False, convolutions=False)
    assert [(one.name, one.evaluate) for one in plain.stages()] == [("finetune", True)]


def test_published_convolutions_are_fixed():
    torch.manual_seed(0)
    backbone = ResNet(18)
    backbone.published = True
    assert SPPNet(3, backbone, (64, 64)).stages()[0].name == "finetune"
    again = SPPNet(3, backbone, (64, 64), convolutions=True)
    assert [one.name for one in again.stages()][:2] == ["convolutions", "finetune"]


def test_what_svms_and_regressors_see_is_what_is_predicted_from(monkeypatch):
    """Images of two sizes in one batch; each size goes through the convolutions once."""
    monkeypatch.setattr(sppnet, "CHUNK", 5 * 128 * 21)
    model = small().eval()
    pixels = noise(3, 3, 64, 80)
    sizes = [(64, 80), (50, 60), (64, 80)]
    pixels[1, :, 50:], pixels[1, :, :, 60:] = 0, 0
    boxes = some_boxes(3, 7, side=50)
    flat, image = boxes.flatten(0, 1), torch.arange(3).repeat_interleave(7)
    asked = []
    model.trunk.register_forward_hook(lambda _, given, out: asked.append(len(given[0])))
    with torch.no_grad():
        parts = list(model.describe(Images(pixels, sizes, list(sizes), boxes), flat, image))
        back = torch.cat([rows for rows, _ in parts]).argsort()
        named = torch.cat([one.named for _, one in parts])[back]
        placed = torch.cat([one.placed for _, one in parts])[back]
        assert max(len(rows) for rows, _ in parts) == 5
        assert asked == [2, 1]
        for row, (h, w) in enumerate(sizes):
            features = model.features(pixels[row : row + 1, :, :h, :w])
            pooled = model.pooled(features, boxes[row], torch.zeros(7).long())
            own = image == row
            torch.testing.assert_close(placed[own], pooled, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(named[own], model.top(pooled), rtol=1e-4, atol=1e-4)


def solve(model: SPPNet) -> None:
    """SVMs and regressors that say something, without the data that it takes."""
    model.fitted.planes.copy_(noise(*model.fitted.planes.shape) * 0.1)
    if model.fitted.fitting.regress:
        model.fitted.regressors.copy_(noise(*model.fitted.regressors.shape) * 0.002)
    model.fitted.solved.fill_(True)


def test_svms_say_what_a_region_is_once_they_are_solved():
    model, (images, _) = small(regress=False, detections=500, overlap=1.0).eval(), batch()
    flat, image = some_boxes(2, 30).flatten(0, 1), torch.arange(2).repeat_interleave(30)

    def found() -> Tensor:
        return columns(model.predict(images))[1].flatten().sort().values

    with torch.no_grad():
        named = model.top(model.pooled(model.features(images.pixels), flat, image))
        softmax = model.cls_score(named).softmax(1)[:, :3]
        torch.testing.assert_close(found(), softmax.flatten().sort().values)
        solve(model)
        expected = (named @ model.fitted.planes.T).sigmoid()
        torch.testing.assert_close(found(), expected.flatten().sort().values)
        assert not small(svm=False).fitted.solved


def test_one_image_is_the_batch():
    model = small(detections=1000, scales=(0.7, 1.4)).eval()
    solve(model)
    pixels, proposals = noise(3, 3, 60, 50), some_boxes(3, 20, side=100)
    sizes, originals = [(60, 50)] * 3, [(120, 100)] * 3

    def predicted(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        own = Images(pixels[rows], sizes[rows], originals[rows], proposals[rows])
        with torch.no_grad():
            return columns(model.predict(own))

    whole = predicted(slice(None))
    assert whole[2].shape[1] > 20
    for row in range(3):
        boxes, scores, labels = predicted(slice(row, row + 1))
        count = labels.shape[1]
        assert labels[0].tolist() == whole[2][row, :count].tolist()
        torch.testing.assert_close(scores[0], whole[1][row, :count], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(boxes[0], whole[0][row, :count], rtol=1e-4, atol=1e-3)


@pytest.mark.filterwarnings("ignore::UserWarning")  # a class without positives
@pytest.mark.parametrize("proposals", [0, 20])
@pytest.mark.parametrize("rows", [2, 0])
def test_without_a_box_or_a_proposal(proposals, rows, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = small()
    images, _ = batch(proposals)
    targets = targets_of(torch.zeros(2, rows, 4), torch.full((2, rows), -1))
    for stage in model.stages():
        if isinstance(stage, FitStage):
            with torch.no_grad():
                stage.fit(iter([Batch(images, targets)]))
            continue
        losses = stage.loss(images, targets)
        assert losses["class"] == 0, "no background overlaps an object"
        losses["class"].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in stage.params())
    assert all(value.isfinite().all() for value in model.state_dict().values())
    with torch.no_grad():
        boxes, scores, _ = columns(model.eval().predict(images))
    assert boxes.isfinite().all()
    assert scores.isfinite().all()


def test_parts_of_the_time_and_of_the_disk():
    model, (images, _) = small().eval(), batch()
    with torch.no_grad(), Clock() as clock:
        model.predict(images)
    assert clock.seconds.keys() == {CONVOLUTION, REGIONS, POST_PROCESSING}
    assert isinstance(model.fitted, FittedRegions)
    assert model.disk_needed(10, 100) == model.fitted.disk_needed(10, 100) > 0
    assert small(svm=False, regress=False).disk_needed(10, 100) == 0


TINY = (
    *("task=detect", "model=sppnet", "proposals=sliding_windows", "proposals.count=40"),
    *("model.svm=false", "model.regress=false", "model.dense=[8,8]", "data.size=64"),
    *("data.digits=[1,3]", "data.train_images=12", "data.val_images=4", "optimizer=sgd"),
    *("trainer.batch_size=4", "trainer.steps=3", "trainer.save_every=2", "trainer.test=false"),
    *("trainer.threads=1", "trainer.tensorboard=false"),
)


@pytest.mark.slow
@pytest.mark.parametrize(  # in the first stage of three steps, in the second, in the only one
    ("stopped_at", "published"), [(2, False), (5, False), (2, True)]
)
def test_stopped_within_a_stage_and_resumed(stopped_at, published, command, tmp_path, monkeypatch):
    options = TINY
    if published:  # which are not read again, but the convolutions are still fixed
        state = get_model("resnet18", weights=None).state_dict()
        monkeypatch.setattr(resnet, "published_weights", lambda entry: state)
        options = (*TINY, "weights=IMAGENET1K_V1")

    def run(folder: Path) -> int:
        return command("train", f"hydra.run.dir={folder}", *options)

    assert run(tmp_path / "whole") == 0
    original, steps = Loop._step, []

    def step(self: Loop, *arguments: Any) -> None:
        original(self, *arguments)
        steps.append(self.progress.step)
        if len(steps) == stopped_at:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_step", step)
        assert run(tmp_path / "parts") == 143
    monkeypatch.setattr(resnet, "published_weights", lambda entry: pytest.fail("read again"))
    assert command("train", f"resume={tmp_path / 'parts'}") == 0
    whole, parts = (checkpoint.read(tmp_path / one / "last.pt") for one in ("whole", "parts"))
    steps_of_all = 3 if published else 6
    assert whole["progress"]["total_steps"] == parts["progress"]["total_steps"] == steps_of_all
    for name, value in whole["model"].items():
        assert torch.equal(value, parts["model"][name]), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": ()}, "levels must be at least 1, got 0"),
        ({"levels": (1, 0)}, "levels must be at least 1, got 0"),
        ({"dense": ()}, "dense must be at least 1, got 0"),
        ({"regions": 0}, "regions must be at least 1, got 0"),
        ({"lowest": -0.5}, "lowest must be from 0 to 1, got -0.5"),
        ({"scales": ()}, r"scales must be above 0, got \[\]"),
        ({"scales": (1.0, 0.0)}, r"scales must be above 0, got \[1.0, 0.0\]"),
        ({"C": 0.0}, "must be above 0"),
        ({"fit_images": 0}, "fit_images must be at least 1, got 0"),
    ],
)
def test_refuses(options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        SPPNet(3, ResNet(18), (64, 64), **options)
