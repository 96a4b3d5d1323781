"""Edge boxes: the gradient that stands in for structured edges, the boxes, and the model's file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cnnctl.data.proposals.edge_boxes import EdgeBoxes, gradient, thinned
from cnnctl.errors import Exit, UserError
from cnnctl.ops.boxes import area as box_area
from cnnctl.ops.boxes import iou

OBJECTS = torch.tensor([[10.0, 12, 34, 52], [50, 40, 88, 60]])


def flat_rectangles() -> torch.Tensor:
    """A red and a blue rectangle on grey."""
    image = torch.full((3, 96, 96), 120, dtype=torch.uint8)
    for (x1, y1, x2, y2), colour in zip(
        OBJECTS.int().tolist(), ([200, 30, 30], [40, 60, 210]), strict=True
    ):
        image[:, y1:y2, x1:x2] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
    return image


def forest(folder: Path) -> Path:
    """A structured forest of one tree with one leaf: every patch has a bar of edges, the same.

    A patch is 16 x 16 inside 32 x 32, read every 2 pixels. It shows that a file of the right form
    is read and asked; what its edges are is no matter here.
    """
    options = {
        "stride": 2,
        "shrinkNumber": 2,
        "patchSize": 32,
        "patchInnerSize": 16,
        "numberOfGradientOrientations": 4,
        "gradientSmoothingRadius": 0,
        "regFeatureSmoothingRadius": 2,
        "ssFeatureSmoothingRadius": 8,
        "gradientNormalizationRadius": 4,
        "selfsimilarityGridSize": 5,
        "numberOfTrees": 1,
        "numberOfTreesToEvaluate": 1,
    }
    lines = ["%YAML:1.0", "options:", *(f"   {name}: {value}" for name, value in options.items())]
    bar = ", ".join(str(16 * column + 8) for column in range(16))
    lines += ["childs:", "   - [ 0 ]", "featureIds:", "   - [ 0 ]", "thresholds:", "   - [ 0. ]"]
    lines += ["edgeBoundaries:", "   - [ 0, 16 ]", "edgeBins:", f"   - [ {bar} ]"]
    path = folder / "model.yml"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_gradient_of_a_step_lies_on_the_step_and_points_across():
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, 30:] = 255  # a step between the columns 29 and 30
    edges, normals = gradient(pixels, sigma=1.0)
    assert edges[20].argmax() in (29, 30)
    assert edges.max() == 1
    assert edges[20, 20] == 0
    assert normals[20, 30] == pytest.approx(0, abs=1e-4)
    across, turned = gradient(np.ascontiguousarray(pixels.swapaxes(0, 1)), sigma=1.0)
    assert np.allclose(across, edges.T, atol=1e-5)
    assert turned[30, 20] == pytest.approx(np.pi / 2, abs=1e-4)


def test_a_colour_step_of_one_lightness_is_an_edge_and_noise_is_a_faint_one():
    pixels = np.full((40, 60, 3), 119, np.uint8)
    pixels[:, 30:] = (200, 85, 90)
    edges, _ = gradient(pixels, sigma=1.0)
    assert edges[20].max() == pytest.approx(1)
    noise = np.random.default_rng(0).integers(119, 122, (40, 60, 3)).astype(np.uint8)
    assert gradient(noise, sigma=2.0)[0].max() < 0.3


def test_thinning_keeps_the_ridge():
    ramp = np.array([0, 0.2, 0.5, 0.9, 0.6, 0.3, 0], np.float32)
    edges = np.tile(ramp, (7, 1))
    thin = thinned(edges, np.zeros_like(edges))  # normals along x
    assert np.array_equal(thin, np.where(edges == np.float32(0.9), edges, 0))
    turned = thinned(edges.T.copy(), np.full_like(edges, np.pi / 2))
    assert np.array_equal(turned, thin.T)


def test_two_flat_rectangles_are_found_first():
    boxes = EdgeBoxes().propose(flat_rectangles())
    assert float(iou(OBJECTS, boxes).amax(1).min()) > 0.85
    assert float(iou(OBJECTS, boxes[:50]).amax(1).min()) > 0.8


def test_boxes_come_in_the_pixels_of_a_large_image():
    large = flat_rectangles().repeat_interleave(8, 1).repeat_interleave(8, 2)
    boxes = EdgeBoxes().propose(large)
    assert float(iou(8 * OBJECTS, boxes).amax(1).min()) > 0.85


def test_the_same_boxes_each_time_and_the_best_of_few_are_the_best_of_many():
    image = flat_rectangles()
    boxes = EdgeBoxes().propose(image)
    assert torch.equal(EdgeBoxes().propose(image), boxes)
    assert torch.equal(EdgeBoxes(count=10).propose(image), boxes[:10])


def test_larger_windows_alone_give_larger_boxes():
    some, large = (EdgeBoxes(area=area).propose(flat_rectangles()) for area in (0.005, 0.05))
    assert float(box_area(some).min()) < 200
    assert float(box_area(large).min()) > 250  # of 461: refined ones are smaller


def test_nothing_is_proposed_where_there_is_no_edge():
    for size in ((96, 96), (8, 300), (1, 1)):
        flat = torch.full((3, *size), 99, dtype=torch.uint8)
        assert EdgeBoxes().propose(flat).shape == (0, 4)


def test_it_says_which_edges_it_takes(tmp_path):
    path = forest(tmp_path)
    assert EdgeBoxes().settings()["model"] is None
    assert "gradient" in EdgeBoxes().remarks()[0]
    with_model = EdgeBoxes(model=str(path))
    assert str(path) in with_model.remarks()[0]
    digest = with_model.settings()["model"]
    path.write_text(path.read_text() + "\n")
    assert with_model.settings()["model"] != digest


def test_a_forest_is_read_and_asked(tmp_path):
    method = EdgeBoxes(model=str(forest(tmp_path)))
    method.require()
    edges, _ = method._edges(np.full((64, 64, 3), 99, np.uint8))
    assert edges.shape == (64, 64)
    assert edges.max() > 0  # of a flat image: no gradient says so


def test_a_model_that_is_absent_or_is_none(tmp_path):
    with pytest.raises(UserError, match="no such file") as absent:
        EdgeBoxes(model=str(tmp_path / "model.yml.gz")).require()
    assert absent.value.field == "proposals.model"
    wrong = tmp_path / "wrong.yml"
    wrong.write_text("not a forest")
    with pytest.raises(UserError, match="no structured forest") as broken:
        EdgeBoxes(model=str(wrong)).require()
    assert broken.value.code == Exit.DATA


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"sides": (500, 200)}, "sides must be two lengths"),
        ({"alpha": 1.0}, "alpha must be between 0 and 1"),
        ({"beta": 0.0}, "beta must be between 0 and 1"),
        ({"sigma": 0.0}, "sigma must be above 0"),
        ({"area": 1.0}, "area must be in"),
        ({"count": 0}, "count must be at least 1"),
    ],
)
def test_numbers_out_of_range(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        EdgeBoxes(**wrong)
