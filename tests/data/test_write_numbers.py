"""Numbers of objects at each pixel as PNGs, read again by Pillow and by this project."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from cnnctl.data.mask_file import read_numbers
from cnnctl.data.palette import voc_palette
from cnnctl.data.write_numbers import write_numbers


@pytest.mark.parametrize(("most", "mode"), [(0, "P"), (254, "P"), (255, "I;16"), (65535, "I;16")])
def test_numbers_are_read_again(most, mode, tmp_path):
    numbers = torch.arange(12).reshape(3, 4).clamp(max=most).int()
    numbers[2, 3] = most
    write_numbers(tmp_path / "a.png", numbers)
    image = Image.open(tmp_path / "a.png")
    assert image.mode == mode
    assert np.array(image).tolist() == numbers.tolist()
    assert read_numbers(tmp_path / "a.png").tolist() == numbers.tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    if mode == "P":
        palette = image.getpalette()
        assert palette is not None
        assert [*zip(*[iter(palette[:9])] * 3, strict=True)] == list(voc_palette(3))


@pytest.mark.parametrize("wrong", [-1, 65536])
def test_a_number_out_of_range_is_refused(wrong, tmp_path):
    with pytest.raises(ValueError, match="numbers must be 0 to 65535"):
        write_numbers(tmp_path / "a.png", torch.tensor([[0, wrong]]))
    assert not list(tmp_path.iterdir())
