"""VOC's colours, against those that its development kit prints."""

from __future__ import annotations

import re

import pytest

from cnnctl.data.palette import voc_palette


def test_the_colours_of_vocs_classes():
    """As listed in the VOC 2012 development kit, section 3.5."""
    palette = voc_palette(21)
    assert palette[:5] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128))
    assert palette[8] == (64, 0, 0)
    assert palette[15] == (192, 128, 128)  # person
    assert palette[20] == (0, 64, 128)  # tv monitor


def test_void_and_all_others():
    palette = voc_palette()
    assert palette[255] == (224, 224, 192)
    assert len(set(palette)) == 256
    assert palette[:21] == voc_palette(21)


@pytest.mark.parametrize("count", [0, 257])
def test_a_palette_that_no_png_holds(count):
    with pytest.raises(ValueError, match=re.escape(f"1 to 256 colours, not {count}")):
        voc_palette(count)
