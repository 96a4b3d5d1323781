from __future__ import annotations

import pytest
import torch
from skimage.feature import hog

from cnnctl.ops import oriented_gradients
from cnnctl.ops.oriented_gradients import cell_histograms, normalised_blocks


@pytest.mark.parametrize(
    ("shape", "orientations", "cell", "block"),
    [((1, 28, 28), 9, 4, 2), ((3, 33, 20), 8, 3, 3), ((3, 16, 16), 4, 8, 1), ((1, 8, 8), 9, 2, 4)],
)
@pytest.mark.parametrize("levels", [256, 3])  # few grey values: many angles on the edge of a bin
def test_is_scikit_images(shape, orientations, cell, block, levels, monkeypatch):
    monkeypatch.setattr(oriented_gradients, "_AT_ONCE", 20_000)  # in parts
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(levels, (4, *shape), generator=generator) * (255 // (levels - 1))
    found = normalised_blocks(cell_histograms(pixels.float(), cell, orientations), block)
    for image, blocks in zip(pixels, found, strict=True):
        expected = hog(
            image.permute(1, 2, 0).numpy(),
            orientations=orientations,
            pixels_per_cell=(cell, cell),
            cells_per_block=(block, block),
            block_norm="L2-Hys",
            feature_vector=False,
            channel_axis=-1,
        )
        assert blocks.shape == (*expected.shape[:2], block * block * orientations)
        torch.testing.assert_close(
            blocks.double(), torch.from_numpy(expected).flatten(2), rtol=1e-4, atol=1e-5
        )


def test_signed_tells_dark_to_bright_from_bright_to_dark():
    ramp = 10.0 * torch.arange(6).expand(1, 1, 6, 6)
    right, left, down, up = (
        cell_histograms(pixels, 6, 8, signed=True).flatten()
        for pixels in (ramp, ramp.flip(3), ramp.transpose(2, 3), ramp.transpose(2, 3).flip(2))
    )
    strength = 20 * 4 / 6  # each difference is 20, but 0 in two of six columns
    for found, bins in ((right, 0), (down, 2), (left, 4), (up, 6)):
        expected = torch.zeros(8).index_fill(0, torch.tensor(bins), strength)
        torch.testing.assert_close(found, expected)
    assert cell_histograms(ramp, 6, 8).flatten().argmax() == 0
    assert cell_histograms(ramp.flip(3), 6, 8).flatten().argmax() == 0


def test_blocks_by_hand():
    """(3, 4) is (0.6, 0.8), cut to (0.2, 0.2), which is (1, 1) / sqrt 2."""
    blocks = normalised_blocks(torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1), 1)
    torch.testing.assert_close(blocks, torch.full((1, 1, 1, 2), 0.5**0.5))
    assert not normalised_blocks(torch.zeros(1, 2, 3, 3), 2).any()
