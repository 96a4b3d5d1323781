from __future__ import annotations

from typing import Any

import pytest
import torch

from cnnctl.models import visual_words
from cnnctl.models.visual_words import VisualWords
from cnnctl.structures import Batch, Images, Targets

SIDE = 16


def stripes(count: int, seed: int) -> Batch:
    """Class 0: stripes above a checkerboard; 1: the other way round; 2 and 3: one of them alone."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    lines, board = (x // 2 % 2).float(), ((x // 2 + y // 2) % 2).float()
    above = y < SIDE // 2
    kinds = (torch.where(above, lines, board), torch.where(above, board, lines), lines, board)
    labels = torch.arange(count) % 4
    pixels = torch.stack(kinds)[labels][:, None]
    pixels = pixels + 0.3 * torch.rand(count, 1, SIDE, SIDE, generator=generator)
    size = [(SIDE, SIDE)] * count
    return Batch(Images(pixels / 1.3, size, size), Targets(torch.arange(count), labels))


def model(**change: Any) -> VisualWords:
    torch.manual_seed(0)
    numbers = {"words": 6, "patch": 4, "spacing": 2, "levels": 1} | change
    return VisualWords(1, 4, (SIDE, SIDE), (0.0,), (1.0,), **numbers)


@pytest.fixture(scope="module")
def fitted() -> VisualWords:
    made, data = model(), stripes(24, 0)
    with torch.no_grad():
        for stage in made.stages():
            stage.fit(iter([data.rows(slice(0, 9)), data.rows(slice(9, None))]))  # pyright: ignore
    return made


@torch.no_grad()
def test_tells_apart_what_differs_by_place_alone(fitted):
    test = stripes(12, 1)
    assert fitted(test.images.pixels).argmax(1).tolist() == (torch.arange(12) % 4).tolist()


@torch.no_grad()
def test_products_are_the_pyramid_match_kernel(fitted, monkeypatch):
    """Equation 3, from counts that are made one patch at a time."""
    levels = 2
    made = model(levels=levels)
    made.words.copy_(fitted.words)
    images = stripes(5, 2).images.pixels
    described = made.descriptors(images)
    assert described.shape == (5, 7, 7, 128)
    said = torch.cdist(described, made.words).argmin(3)
    expected = torch.zeros(5, 5)
    for level in range(levels + 1):
        parts = 2**level
        counts = torch.zeros(5, parts, parts, 6)
        for image in range(5):
            for row in range(7):
                for column in range(7):
                    part = (row * parts // 7, column * parts // 7)
                    counts[image, *part, said[image, row, column]] += 1
        weight = 1 / 2**levels if level == 0 else 1 / 2 ** (levels - level + 1)
        least = torch.minimum(counts[:, None], counts[None]).flatten(2).sum(2)
        expected += weight * least / 49
    features = made.pyramid(images)
    torch.testing.assert_close(features @ features.T, expected)
    torch.testing.assert_close(expected.diagonal(), torch.ones(5))
    monkeypatch.setattr(visual_words, "_AT_ONCE", 1)  # an image at a time
    made.classifier.weight.normal_(generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(made(images), made.classifier(features))


@torch.no_grad()
def test_words_are_the_means_of_their_patches(fitted):
    """At most 50,000 are drawn; here all are: no word can move to fit its patches better."""
    described = fitted.descriptors(stripes(24, 0).images.pixels).flatten(0, 2)
    said = torch.cdist(described, fitted.words).argmin(1)
    means = torch.stack([described[said == word].mean(0) for word in range(6)])
    assert (means - fitted.words).norm(dim=1).max() < 0.1
    assert torch.pdist(fitted.words).min() > 0.2


@torch.no_grad()
def test_more_words_than_patches(monkeypatch):
    monkeypatch.setattr(visual_words, "_SAMPLE", 10)
    made, data = model(words=30), stripes(8, 0)
    made.find_words(iter([data]))
    said = torch.cdist(made.descriptors(data.images.pixels).flatten(0, 2), made.words).argmin(1)
    assert said.max() < 10
    made.fit(iter([data]))
    assert made(data.images.pixels).isfinite().all()


@torch.no_grad()
def test_is_the_same_again_and_comes_back(fitted):
    again, data = model(), stripes(24, 0)
    again.find_words(iter([data.rows(slice(0, 9)), data.rows(slice(9, None))]))
    assert torch.equal(again.words, fitted.words)
    fresh = model()
    pixels = data.images.pixels
    assert not fresh(pixels).any()
    fresh.load_state_dict(fitted.state_dict())
    assert torch.equal(fresh(pixels), fitted(pixels))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"words": 0}, "words must be at least 1, got 0"),
        ({"patch": 6}, "patch must be a multiple of 4 pixels, got 6"),
        ({"patch": 8, "spacing": 3}, "spacing must be a multiple of patch / 4, got 3"),
        ({"levels": -1}, "levels must be at least 0"),
        ({"C": 0.0}, "C positive"),
        ({"levels": 3}, "8 x 8 parts .* at least 18 x 18, got 16 x 16"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        model(**change)


def test_the_smallest_image_is_as_said():
    numbers: dict[str, Any] = {"words": 2, "patch": 4, "spacing": 2, "levels": 3}
    VisualWords(1, 2, (18, 18), (0.0,), (1.0,), **numbers)
    with pytest.raises(ValueError, match="18 x 18"):
        VisualWords(1, 2, (17, 18), (0.0,), (1.0,), **numbers)
