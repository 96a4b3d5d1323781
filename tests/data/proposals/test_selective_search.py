"""Selective search: what it finds, that it finds the same each time, and the paper's rank."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from cnnctl.data.digit_boxes import DigitBoxes
from cnnctl.data.proposals import selective_search
from cnnctl.data.proposals.selective_search import SelectiveSearch
from cnnctl.metrics.proposal_recall import ProposalRecall
from cnnctl.ops.boxes import iou

OBJECTS = torch.tensor([[10.0, 12, 34, 52], [50, 40, 88, 60]])


@pytest.fixture(scope="module")
def scenes() -> DigitBoxes:
    return DigitBoxes("test", test_images=20)


@pytest.fixture(scope="module")
def scene(scenes: DigitBoxes) -> torch.Tensor:
    return scenes[0][0]


def flat_rectangles(side: int = 96) -> torch.Tensor:
    """A red and a blue rectangle on grey, a little noise."""
    drawn = torch.Generator().manual_seed(0)
    image = torch.full((3, side, side), 120.0)
    for (x1, y1, x2, y2), colour in zip(
        OBJECTS.int().tolist(), ([200.0, 30, 30], [40.0, 60, 210]), strict=True
    ):
        image[:, y1:y2, x1:x2] = torch.tensor(colour)[:, None, None]
    noise = torch.randn(image.shape, generator=drawn) * 3
    return (image + noise).round().clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("mode", ["fast", "quality"])
def test_two_flat_rectangles_are_found(mode):
    boxes = SelectiveSearch(mode=mode).propose(flat_rectangles())
    assert float(iou(OBJECTS, boxes).amax(1).min()) > 0.9


def test_quality_finds_more_than_fast(scene):
    fast, quality = (SelectiveSearch(mode=mode).propose(scene) for mode in ("fast", "quality"))
    assert len(quality) > 2 * len(fast)


def test_the_same_boxes_each_time_and_with_any_number_of_threads(scene):
    method = SelectiveSearch()
    boxes = method.propose(scene)
    cv2.setRNGSeed(5)
    np.random.default_rng(1).random()
    cv2.setNumThreads(4)
    try:
        assert torch.equal(method.propose(scene), boxes)
    finally:
        cv2.setNumThreads(1)
    other = SelectiveSearch(seed=1).propose(scene)
    assert not torch.equal(other, boxes)
    assert {tuple(row) for row in other.tolist()} == {tuple(row) for row in boxes.tolist()}


@pytest.mark.slow
def test_the_same_boxes_in_another_process(scene):
    code = (
        "from cnnctl.data.digit_boxes import DigitBoxes\n"
        "from cnnctl.data.proposals.selective_search import SelectiveSearch\n"
        "import torch\n"
        "print(SelectiveSearch().propose(DigitBoxes('test', test_images=20)[0][0]).tolist())"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == str(SelectiveSearch().propose(scene).tolist())


def test_the_rank_is_a_random_number_times_the_place_from_the_largest(monkeypatch):
    hierarchies = iter([[[0, 0, 90, 90], [0, 0, 60, 60], [0, 0, 30, 30]], [[5, 5, 80, 80]]])
    found = [np.array(one, np.float32) for one in hierarchies]
    monkeypatch.setattr(SelectiveSearch, "_regions", lambda self, pixels: found)
    boxes = SelectiveSearch(seed=3).propose(flat_rectangles())
    drawn = np.random.default_rng(3).random(4) * [1, 2, 3, 1]
    assert np.array_equal(boxes.numpy(), np.concatenate(found)[drawn.argsort()])


def test_few_boxes_are_the_first_of_many_and_large_ones_tend_to_come_first(scene):
    many, few = SelectiveSearch().propose(scene), SelectiveSearch(count=20).propose(scene)
    assert torch.equal(few, many[:20])
    area = (many[:, 2:] - many[:, :2]).prod(1)
    assert float(area[:40].mean()) > 2 * float(area[-40:].mean())


def test_a_large_image_is_searched_smaller_and_boxes_come_in_its_own_pixels():
    large = flat_rectangles().repeat_interleave(8, 1).repeat_interleave(8, 2)  # 768 x 768
    boxes = SelectiveSearch(side=96).propose(large)
    assert float(iou(8 * OBJECTS, boxes).amax(1).min()) > 0.9
    assert float(boxes.max()) == 768


def test_boxes_with_a_short_side_are_left_out(scene):
    sides = SelectiveSearch(smallest=0.25).propose(scene)
    assert float((sides[:, 2:] - sides[:, :2]).min()) >= 24


def test_colour_spaces_of_known_pixels():
    pixels = np.array([[[200, 100, 100], [0, 0, 0]]], np.uint8)
    assert selective_search._coloured(pixels, "rgI")[0].tolist() == [[127, 63, 130], [0, 0, 0]]
    assert selective_search._coloured(pixels, "HSV")[0, 0].tolist() == [0, 127, 200]
    assert selective_search._coloured(pixels, "H").shape == (1, 2)
    assert selective_search._coloured(pixels, "I")[0].tolist() == [130, 0]


def test_recall_on_digit_scenes(scenes):
    """What R-CNN's AP is bounded by; in 100 scenes 300 boxes find 99.4 % of the digits."""
    recall = ProposalRecall()
    for image, truth in scenes:
        recall.update(SelectiveSearch(count=300).propose(image), truth["boxes"])
    assert recall.compute().at(0.5)[-1] >= 0.97
    assert recall.compute().at(0.7)[-1] >= 0.93


@pytest.mark.slow
@pytest.mark.data
def test_recall_on_voc():
    """Uijlings et al. report 0.99 on VOC 2007 with 10,097 boxes of the quality mode (abstract)."""
    from cnnctl.data.voc_boxes import VOCBoxes

    images, recall = VOCBoxes("test"), ProposalRecall()
    for image, truth in (images[index] for index in range(12)):
        recall.update(SelectiveSearch().propose(image), truth["boxes"], truth["difficult"])
    assert recall.compute().at(0.5)[-1] >= 0.88


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"side": 8}, "side must be at least 16"),
        ({"segment": 0.0}, "segment must be a share"),
        ({"smallest": 1.0}, "smallest must be in"),
        ({"sigma": 0.0}, "sigma must be above 0"),
        ({"count": 0}, "count must be at least 1"),
    ],
)
def test_numbers_out_of_range(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        SelectiveSearch(**wrong)
