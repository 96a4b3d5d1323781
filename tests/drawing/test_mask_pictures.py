"""Pictures of class maps by their pixels: which colour is where."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from cnnctl.data.palette import voc_palette
from cnnctl.drawing import mask_pictures
from cnnctl.drawing.mask_pictures import VOID
from cnnctl.drawing.pictures import RIGHT, WRONG
from cnnctl.metrics.segmentation import SegmentationEvaluator
from cnnctl.structures import Batch, Images, Predictions, Targets

PALETTE = voc_palette(4)  # black, dark red, dark green, olive
CLASSES = ("background", "cat", "dog", "owl")
PAINT = (51, 102, 255)  # of an image; not grey, as the edges of letters are
MEAN = (0.2, 0.4, 1.0)


def painted(h: int, w: int) -> Tensor:
    """(3, h, w) uint8 of one colour."""
    return torch.tensor(PAINT, dtype=torch.uint8)[:, None, None].repeat(1, h, w)


def pixels_of(picture: Tensor, colour) -> Tensor:
    """(H, W) bool: where the picture has exactly that colour."""
    return (picture == torch.as_tensor(colour, dtype=torch.uint8)).all(2)


def mask_of(*rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.uint8)


def test_a_mask_has_its_palette_and_void_is_vocs_cream():
    picture = mask_pictures.coloured_mask(mask_of([0, 1, 2], [3, 4, 255]), PALETTE)
    assert picture.tolist() == [
        [[0, 0, 0], [128, 0, 0], [0, 128, 0]],
        [[128, 128, 0], [224, 224, 192], [224, 224, 192]],
    ]
    whole = mask_pictures.coloured_mask(mask_of([20, 255]), voc_palette())
    assert whole.tolist() == [[[0, 64, 128], [224, 224, 192]]]


def test_an_overlay_leaves_background_and_void_as_they_are():
    image = torch.full((3, 1, 3), 100, dtype=torch.uint8)
    picture = mask_pictures.overlay(image, mask_of([0, 255, 1]), PALETTE, alpha=0.5)
    assert picture.tolist() == [[[100, 100, 100], [100, 100, 100], [114, 50, 50]]]
    coloured = [(200, 0, 0), *PALETTE[1:]]
    picture = mask_pictures.overlay(image[:1], mask_of([0, 255, 1]), coloured, alpha=0.5)
    assert picture[0, 0].tolist() == [150, 50, 50]  # a background that has a colour is shown


def test_errors_are_right_wrong_or_void():
    picture = mask_pictures.error_map(mask_of([0, 1, 255]), mask_of([0, 2, 1]))
    assert [tuple(pixel) for pixel in picture[0].tolist()] == [RIGHT, WRONG, VOID]


def test_the_legend_has_the_classes_that_occur_in_order():
    masks = [mask_of([3, 0]), mask_of([255, 1])]
    legend = mask_pictures.class_legend(masks, CLASSES, PALETTE)
    expected = [("background", PALETTE[0]), ("cat", PALETTE[1]), ("owl", PALETTE[3])]
    assert legend == [*expected, ("void", VOID)]
    assert mask_pictures.class_legend(masks[:1], CLASSES, PALETTE) == expected[::2]


def test_compared_enlarges_by_whole_factors_and_keeps_every_pixel():
    truth, predicted = mask_of([0, 1, 1], [0, 255, 2]), mask_of([0, 1, 2], [0, 2, 2])
    image = painted(2, 3)
    picture = mask_pictures.compared([image], [truth], [predicted], CLASSES, PALETTE, side=100)
    cell, swatch = 33 * 33, 13 * 13  # of a pixel; of a legend's box inside its edge
    assert pixels_of(picture, PAINT).sum() == 6 * cell + 2 * cell  # and the overlay's
    assert pixels_of(picture, PALETTE[1]).sum() == (2 + 1) * cell + swatch
    assert pixels_of(picture, PALETTE[2]).sum() == (1 + 3) * cell + swatch
    assert pixels_of(picture, VOID).sum() == 2 * cell + swatch  # truth and errors
    assert pixels_of(picture, RIGHT).sum() == 4 * cell + swatch
    assert pixels_of(picture, WRONG).sum() == 1 * cell + swatch
    assert not pixels_of(picture, PALETTE[3]).any()  # does not occur


def test_large_maps_are_shrunk_without_blending():
    truth = torch.randint(2, (300, 500), generator=torch.Generator().manual_seed(0)).byte()
    column = mask_pictures.Column("truth", [mask_pictures.coloured_mask(truth, PALETTE)])
    picture = mask_pictures.table([column], [], side=100)
    inside = pixels_of(picture, PALETTE[0]) | pixels_of(picture, PALETTE[1])
    assert inside[30:90].any(1).all()
    assert int(inside[30:90].sum(1).median()) == 100


def test_images_of_different_sizes_do_not_overlap():
    sizes = [(10, 40), (40, 10), (30, 30)]
    images = [painted(h, w) for h, w in sizes]
    masks = [torch.zeros(size, dtype=torch.uint8) for size in sizes]
    picture = mask_pictures.compared(images, masks, masks, CLASSES, PALETTE, side=80)
    area = sum(2 * h * 2 * w for h, w in sizes)
    assert pixels_of(picture, PAINT).sum() == 2 * area  # image and overlay
    assert pixels_of(picture, RIGHT).sum() == area + 13 * 13


@pytest.mark.parametrize("length", [3, 90])
def test_a_long_legend_flows_over_lines_and_stays_inside(length):
    legend = [("class " * 3 * (i % 2 + 1), (i + 1, 200, 255)) for i in range(length)]
    column = mask_pictures.Column("truth", [torch.zeros(8, 8, 3, dtype=torch.uint8)])
    picture = mask_pictures.table([column], legend, side=64)
    for _, colour in legend:
        assert pixels_of(picture, colour).sum() == 13 * 13
    ink = (picture < 128).any(2)
    assert not ink[:, -4:].any()
    assert not ink[-4:].any()


def test_bars_are_as_long_as_the_ious_and_have_the_colours_of_the_classes():
    ious = {"cat": 0.5, "dog": 1.0, "owl": 0.1}
    colours = {"cat": (10, 0, 250), "dog": (250, 0, 10), "owl": (0, 250, 10)}
    picture = mask_pictures.class_ious(ious, colours)
    for name, iu in ious.items():
        bar = pixels_of(picture, colours[name])
        assert int(bar.sum(1).max()) == pytest.approx(360 * iu, abs=4)  # less edge, dashed line
    first_rows = [int(pixels_of(picture, colours[n]).any(1).int().argmax()) for n in colours]
    assert first_rows[1] < first_rows[0] < first_rows[2]  # the best on top


def test_many_bars_are_the_best_and_the_worst():
    grey = dict.fromkeys((f"c{i}" for i in range(300)), (90, 90, 90))
    many = mask_pictures.class_ious({f"c{i}": i / 299 for i in range(300)}, grey)
    few = mask_pictures.class_ious({f"c{i}": i / 39 for i in range(40)}, grey)
    assert many.shape[0] == few.shape[0] + 22  # a row more, which says how many are left out
    assert mask_pictures.class_ious({}, {}).shape[2] == 3


def test_annotated_shows_image_map_and_overlay():
    image = painted(20, 20)
    mask = torch.zeros(20, 20, dtype=torch.uint8)
    mask[:10] = 2
    said = {"mask": mask, "top": [{"class": "background", "share": 0.5}]}
    picture = mask_pictures.annotated(image, said, CLASSES, None)
    scale = (256 // 20) ** 2
    assert pixels_of(picture, PAINT).sum() == (400 + 200) * scale
    assert pixels_of(picture, PALETTE[2]).sum() == 200 * scale + 13 * 13


def padded_batch() -> tuple[Batch, SimpleNamespace]:
    """Two images, 4 x 6 (brought to 8 x 12 for the network) and 5 x 3, padded to one size."""
    data = SimpleNamespace(classes=CLASSES, palette=None, mean=MEAN, std=(0.25,) * 3)
    pixels = torch.zeros(2, 3, 8, 12)  # normalised: of the colour PAINT
    mask = torch.full((2, 5, 6), 255, dtype=torch.uint8)
    mask[0, :4, :6], mask[1, :5, :3] = 1, 2
    images = Images(pixels, [(8, 12), (5, 3)], [(4, 6), (5, 3)])
    return Batch(images, Targets(torch.arange(2), mask=mask)), data


def test_an_evaluation_is_drawn_in_original_pixels_without_padding():
    batch, data = padded_batch()
    assert batch.targets.mask is not None
    predictions = Predictions(mask=batch.targets.mask.clone())
    evaluator = SegmentationEvaluator(CLASSES)
    evaluator.update(predictions, batch.targets)
    model = nn.Conv2d(3, 4, 3)
    drawn = mask_pictures.draw_evaluation([(batch, predictions)], evaluator, model, data)  # pyright: ignore
    assert set(drawn) == {
        *("val/predictions", "val/confusion"),
        *("val/class_iu", "weights/first_layer"),
    }
    picture = drawn["val/predictions"]
    first, second = 24 * (224 // 6) ** 2, 15 * (224 // 5) ** 2
    assert pixels_of(picture, PAINT).sum() == first + second  # image; overlay is mixed
    assert pixels_of(picture, PALETTE[1]).sum() == 2 * first + 13 * 13
    assert pixels_of(picture, RIGHT).sum() == first + second + 13 * 13
    assert not pixels_of(picture, VOID).any()


def test_a_training_batch_is_drawn_as_it_is_augmented():
    batch, data = padded_batch()
    batch.images.originals = batch.images.sizes = [(5, 6), (5, 3)]
    picture = mask_pictures.draw_batch(batch, data)["train/batch"]  # pyright: ignore
    assert pixels_of(picture, PALETTE[2]).sum() == 15 * (224 // 5) ** 2 + 13 * 13
    assert pixels_of(picture, VOID).sum() == 6 * (224 // 6) ** 2 + 13 * 13


def test_drawing_draws_no_random_number():
    state = torch.get_rng_state()
    test_an_evaluation_is_drawn_in_original_pixels_without_padding()
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    nn.Conv2d(3, 4, 3)  # the test's own model draws
    assert torch.equal(torch.get_rng_state(), after)
