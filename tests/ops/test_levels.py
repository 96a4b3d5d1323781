from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms, sigmoid_focal_loss

from cnnctl.ops.anchors import shapes
from cnnctl.ops.levels import TiledLevels, best_of_levels, filled_up, focal_sums


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_filled_up():
    pixels = torch.ones(1, 1, 3, 4)
    assert filled_up(pixels, 1) is pixels
    filled = filled_up(pixels, 4)
    assert filled.shape == (1, 1, 4, 4)
    assert filled.sum((0, 1, 3)).tolist() == [4, 4, 4, 0]


def test_levels_are_tiled_as_torchvision_does():
    """Also where a map was rounded up: 96 pixels give 2 of stride 64, and it takes 48."""
    pixels = noise(1, 3, 96, 160)
    maps = [noise(1, 4, h, w) for h, w in ((12, 20), (6, 10), (2, 3), (1, 2))]
    sizes = ((32.0, 40.0), (64.0, 80.0), (128.0, 161.0), (256.0, 322.0))
    theirs = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 4)
    expected = theirs(ImageList(pixels, [(96, 160)]), maps)[0]
    bases = [shapes(sides, (0.5, 1.0, 2.0)).round() for sides in sizes]
    anchors, counts = TiledLevels(bases)(maps, (96, 160))
    assert counts == [6 * 240, 6 * 60, 6 * 6, 6 * 2]
    torch.testing.assert_close(anchors, expected)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 0.0), (0.5, 1.5)])
def test_focal_sums_are_torchvisions(alpha, gamma):
    logits = (3 * noise(2, 5, 4)).requires_grad_()
    labels = torch.tensor([[0, -1, 3, -1, 2], [-1, -1, -1, -1, -1]])
    counted = torch.tensor([[True, True, False, False, True], [True, False, True, True, True]])
    truth = torch.nn.functional.one_hot(labels + 1, 5)[..., 1:].float()
    each = sigmoid_focal_loss(logits, truth, alpha, gamma)
    expected = (each.sum(2) * counted).sum(1)
    found = focal_sums(logits, labels, counted, alpha, gamma)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_focal_sum_by_hand():
    """p = 1/2 everywhere: 0.25 ln 2 / 4 where the class is true, 0.75 ln 2 / 4 where it is not."""
    found = focal_sums(torch.zeros(1, 1, 3), torch.tensor([[1]]), torch.ones(1, 1).bool(), 0.25, 2)
    assert found.item() == pytest.approx((0.25 + 2 * 0.75) * 0.693147 / 4, rel=1e-5)


def one_by_one(
    logits: Tensor, counts: list[int], boxes: Tensor, quality: Tensor | None, candidates: int
) -> list[tuple[list[int], Tensor]]:
    """The same with a loop over images, levels and all pairs, score 0.4, overlap 0.5, 6 at most."""
    found, k = [], logits.shape[2]
    for n in range(len(logits)):
        scores = logits[n].sigmoid()
        if quality is not None:
            scores = (scores * quality[n].sigmoid()[:, None]).sqrt()
        rows: list[int] = []
        for level, start in zip(counts, torch.tensor([0, *counts]).cumsum(0), strict=False):
            flat = scores[start : start + level].flatten()
            order = flat.argsort(descending=True)[:candidates]
            rows += [int(i + start * k) for i in order if flat[i] > 0.4]
        chosen = torch.tensor(rows)
        classes, values = chosen % k, scores.flatten()[chosen]
        keep = batched_nms(boxes[n, chosen // k].clamp(0, 60), values, classes, 0.5)[:6]
        found.append((classes[keep].tolist(), values[keep]))
    return found


@pytest.mark.parametrize("with_quality", [False, True])
@pytest.mark.parametrize("candidates", [3, 1000])
def test_best_of_levels(with_quality, candidates):
    counts = [20, 6, 2]
    logits = 2 * noise(3, 28, 4)
    logits[2] = -9  # nothing is found in the third image
    low = noise(3, 28, 2).abs() * 20
    boxes = torch.cat([low, low + 12], 2)
    quality = noise(3, 28, 1)[..., 0] if with_quality else None
    found = best_of_levels(
        logits,
        counts,
        lambda rows: boxes.gather(1, rows[:, :, None].expand(-1, -1, 4)),
        [(60, 60)] * 3,
        score=0.4,
        overlap=0.5,
        most=6,
        quality=quality,
        candidates=candidates,
    )
    assert found.boxes.max() <= 60
    expected = one_by_one(logits[:2], counts, boxes, quality, candidates)
    for n, (labels, scores) in enumerate(expected):
        assert found.labels[n][: len(labels)].tolist() == labels
        torch.testing.assert_close(found.scores[n][: len(labels)], scores)
    assert found.labels[2].tolist() == [-1] * found.labels.shape[1]
