"""Views averaged: against torchvision's crops, and by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import FiveCrop, TenCrop

from cnnctl.models.lenet import LeNet
from cnnctl.ops.views import Views, average, five_crops, moved_by_one, scaled
from cnnctl.structures import Images, Predictions

SIZE = (6, 6)


class Means(nn.Module):
    """Two logits: the mean of the pixels, and of those in the left half."""

    trained_shape = (1, *SIZE)

    def forward(self, pixels: Tensor) -> Tensor:
        left = pixels[..., : pixels.shape[3] // 2]
        return torch.stack([pixels.mean((1, 2, 3)), left.mean((1, 2, 3))], 1)

    def score_map(self, pixels: Tensor) -> Tensor:
        """Windows of SIZE at stride 1."""
        windows = pixels.unfold(2, 6, 1).unfold(3, 6, 1)  # (N, 1, h, w, 6, 6)
        return torch.cat([windows.mean((4, 5)), windows[..., :3].mean((4, 5))], 1)


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(3, 1, 7, 7, generator=torch.Generator().manual_seed(0))


def images(*pixels: Tensor) -> Images:
    """A batch of images (1, h, w) of several sizes, padded with NaN."""
    sizes = [(one.shape[1], one.shape[2]) for one in pixels]
    height, width = (max(side) for side in zip(*sizes, strict=True))
    padded = torch.full((len(pixels), 1, height, width), torch.nan)
    for row, one in zip(padded, pixels, strict=True):
        row[:, : one.shape[1], : one.shape[2]] = one
    return Images(padded, sizes, sizes)


def probabilities(views: Views, model: Any, batch: Images) -> Tensor:
    found = views.predict(model, batch).log_probs
    assert found is not None
    return found.exp()


@pytest.mark.parametrize("shape", [(7, 7), (8, 9), (9, 8), (11, 30)])
def test_crops_are_torchvisions(shape):
    whole = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    crops = list(five_crops(whole, SIZE))
    torch.testing.assert_close(crops, list(FiveCrop(SIZE)(whole)), rtol=0, atol=0)
    seen = [view for crop in crops for view in (crop, crop.flip(3))]
    theirs = TenCrop(SIZE)(whole)  # five, and the crops of the mirror image: right before left
    order = (0, 6, 1, 5, 2, 8, 3, 7, 4, 9)
    expected = [theirs[i] for i in order]
    centres_differ = (shape[1] - SIZE[1]) % 2  # an odd rest is on the other side of a mirror image
    for mine, its in zip(seen[: 10 - centres_differ], expected, strict=False):
        torch.testing.assert_close(mine, its, rtol=0, atol=0)


def test_ten_crops_are_the_mean_of_ten_probabilities(pixels):
    """Of 7 x 7, which is 256/224 of 6 x 6."""
    model, views = Means(), Views("ten_crop")
    assert views.frame((7, 7), SIZE, 1.0) == (7, 7)
    found = probabilities(views, model, images(*pixels))
    crops = FiveCrop(SIZE)(pixels)
    each = [model(view).softmax(1) for crop in crops for view in (crop, crop.flip(3))]
    torch.testing.assert_close(found, sum(each) / 10)
    five = probabilities(Views("ten_crop", flip=False), model, images(*pixels))
    torch.testing.assert_close(five, sum(each[::2]) / 5)


def test_a_flip_is_the_mean_of_two(pixels):
    model, small = Means(), pixels[..., :6, :6]
    found = probabilities(Views(flip=True), model, images(*small))
    expected = (model(small).softmax(1) + model(small.flip(3)).softmax(1)) / 2
    torch.testing.assert_close(found, expected)


def test_shifts_by_a_pixel_count_as_much_as_the_image_where_it_is(pixels):
    """Six views by torch's own padding: 1/4 each way as it is, 1/8 each way moved."""
    model, small = Means(), pixels[..., :6, :6]
    padded = F.pad(small, (1,) * 4, mode="reflect")
    moved = [small, small, padded[..., :6, :6], padded[..., 2:, 2:]]
    each = torch.stack([(model(v).softmax(1) + model(v.flip(3)).softmax(1)) / 2 for v in moved])
    found = probabilities(Views("shifted", flip=True), model, images(*small))
    torch.testing.assert_close(found, each.mean(0))
    found = probabilities(Views("shifted"), model, images(*small))
    torch.testing.assert_close(found, torch.stack([model(v).softmax(1) for v in moved]).mean(0))
    down, up = moved_by_one(small)
    assert torch.equal(down[..., 1:, 1:], small[..., :-1, :-1])
    assert torch.equal(up[..., :-1, :-1], small[..., 1:, 1:])
    line = torch.tensor([[[[1.0, 2.0]]]])  # a side of one pixel has no neighbour to reflect
    assert moved_by_one(line)[0].tolist() == [[[[1.0, 1.0]]]]


@pytest.mark.parametrize(
    "views",
    [
        Views("ten_crop"),
        Views("ten_crop", scales=(1.0, 1.5)),
        Views("dense", True, (1.0, 1.3, 2.0)),
        Views("dense", pool="max"),
        Views(flip=True),
        Views("shifted", flip=True),
    ],
)
def test_of_a_constant_image_all_views_are_alike(views):
    side = 6 if views.is_whole else 7
    found = probabilities(views, Means(), images(torch.full((1, side, side), 0.7)))
    torch.testing.assert_close(found, torch.full((1, 2), 0.5))


def test_dense_by_hand(pixels):
    """Four places of 7 x 7 at scale 7/6: their scores averaged, or the largest of each class."""
    model = Means()
    scores = torch.stack([model(pixels[..., y : y + 6, x : x + 6]) for y in (0, 1) for x in (0, 1)])
    for views, expected in (
        (Views("dense", scales=(7 / 6,)), scores.mean(0).softmax(1)),
        (Views("dense", scales=(7 / 6,), pool="max"), scores.amax(0).softmax(1)),
    ):
        assert views.frame((7, 7), SIZE, 7 / 6) == (7, 7)
        torch.testing.assert_close(probabilities(views, model, images(*pixels)), expected)
    one = scaled(pixels, SIZE)
    both = probabilities(Views("dense", True, (1.0, 7 / 6)), model, images(*pixels))
    mirrored = [model(one.flip(3)), model.score_map(pixels.flip(3)).mean((2, 3))]
    logits = [model(one), scores.mean(0), *mirrored]
    torch.testing.assert_close(both, sum(row.softmax(1) for row in logits) / 4)


def test_at_the_training_size_a_dense_view_is_the_network_itself():
    torch.manual_seed(0)
    model = LeNet(1, 10, (32, 32)).eval()
    model.trained_shape = (1, 32, 32)
    pixels = torch.randn(4, 1, 32, 32)
    with torch.no_grad():
        found = probabilities(Views("dense"), model, images(*pixels))
        torch.testing.assert_close(found, model(pixels).softmax(1))


def test_images_of_several_sizes_are_looked_at_one_size_at_a_time(pixels):
    """Photographs: the shorter side is 7, the padding of the batch is not seen."""
    views = Views("dense", uniform=False)
    wide = torch.randn(1, 7, 12, generator=torch.Generator().manual_seed(1))
    batch = images(pixels[0], wide, pixels[1])
    found = probabilities(views, Means(), batch)
    for row, one in enumerate((pixels[0], wide, pixels[1])):
        expected = Means().score_map(one[None]).mean((2, 3)).softmax(1)
        torch.testing.assert_close(found[row : row + 1], expected)


def test_places_are_told_where_nothing_is_pooled(pixels):
    wide = torch.randn(1, 7, 12, generator=torch.Generator().manual_seed(1))
    views = Views("dense", pool="none", uniform=False)
    said = views.predict(Means(), images(pixels[0], wide))
    assert said.places is not None
    assert [tuple(one.shape) for one in said.places] == [(2, 2, 2), (2, 2, 7)]
    torch.testing.assert_close(said.places[1], Means().score_map(wide[None])[0].log_softmax(0))


@pytest.mark.parametrize(
    ("views", "name"),
    [
        (Views(), ""),
        (Views(flip=True), "flip"),
        (Views("shifted"), "shifted"),
        (Views("shifted", flip=True), "shifted+flip"),
        (Views("ten_crop"), "10crop"),
        (Views("ten_crop", flip=False), "5crop"),
        (Views("ten_crop", scales=(1.0, 1.2)), "10crop+x1+x1.2"),
        (Views("dense"), "dense"),
        (Views("dense", True, (0.9, 1.0), "max"), "dense+max+flip+x0.9+x1"),
    ],
)
def test_names(views, name):
    assert views.name == name
    assert views.is_plain == (name == "")


@pytest.mark.parametrize(
    ("views", "shape", "frame", "shown"),
    [
        (Views("ten_crop"), (8, 8), (256, 256), (256, 256)),
        (Views("ten_crop", uniform=False), (300, 300), (256, 256), (256, 256)),
        (Views("dense", scales=(2.0,)), (32, 32), (448, 448), (448, 448)),
        (Views("dense", scales=(1.0, 2.0)), (32, 32), (448, 448), (32, 32)),
        (Views("dense", scales=(1.0, 2.0)), (500, 500), (448, 448), (448, 448)),
        (Views("dense", uniform=False), (333, 500), (256, 384), (256, 384)),
        (Views("dense", uniform=False), (500, 333), (384, 256), (384, 256)),
        (Views("dense", scales=(1.0, 1.5), uniform=False), (375, 500), (384, 512), (375, 500)),
        (Views("dense"), (100, 200), (224, 448), (224, 448)),  # a user's own, of another shape
    ],
)
def test_sizes(views, shape, frame, shown):
    """Of an image at the largest scale, for an input of 224; and as it is handed over."""
    size, largest = (224, 224), max(views.scales)
    assert views.frame(shape, size, largest) == frame
    assert views.shown(shape, size) == shown
    assert views.frame(frame, size, largest) == frame  # what has its size is not resized again


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scales": ()}, "from 0.1 to 10"),
        ({"view": "dense", "scales": (0.01,)}, "from 0.1 to 10"),
        ({"scales": (1.0, 2.0)}, "scales are for view=dense"),
        ({"view": "shifted", "scales": (1.0, 2.0)}, "scales are for view=dense"),
        ({"view": "ten_crop", "pool": "max"}, "pool=max is for view=dense"),
        ({"view": "dense", "pool": "none", "flip": True}, "one view"),
        ({"view": "dense", "pool": "none", "scales": (1.0, 2.0)}, "one view"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Views(**settings)


def test_networks_are_averaged_by_their_probabilities():
    rows = torch.tensor([[[0.9, 0.1], [0.5, 0.5]], [[0.2, 0.8], [1.0, 0.0]]])
    found = average([Predictions(log_probs=one.log()) for one in rows]).log_probs
    assert found is not None
    torch.testing.assert_close(found.exp(), torch.tensor([[0.55, 0.45], [0.75, 0.25]]))
    certain = average([Predictions(log_probs=torch.tensor([[0.0, -torch.inf]]))] * 2).log_probs
    assert certain is not None
    assert certain.isfinite().all()
