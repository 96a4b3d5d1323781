"""An annotation in VOC's format: pixels from 1, what is read of it, and what is refused."""

from __future__ import annotations

import pytest

from cnnctl.data import voc_xml
from cnnctl.data.voc_xml import from_voc, parse_voc_xml, read_xml_files, to_voc
from cnnctl.errors import Exit, UserError

SIZE = "<size><width>20</width><height>10</height><depth>3</depth></size>"
BOX = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>5</xmax><ymax>9</ymax></bndbox>"


def record(objects: str, size: str = SIZE, first_pixel: int = 1) -> voc_xml.Record:
    return parse_voc_xml(f"<annotation>{size}{objects}</annotation>".encode(), first_pixel)


def thing(box: str = BOX, name: str = "<name>dog</name>", more: str = "") -> str:
    return f"<object>{name}{more}{box}</object>"


def sides(*values: object) -> str:
    tags = zip(("xmin", "ymin", "xmax", "ymax"), values, strict=True)
    return f"<bndbox>{''.join(f'<{tag}>{value}</{tag}>' for tag, value in tags)}</bndbox>"


def test_the_first_and_last_pixel_become_sides():
    assert from_voc(1, 1, 1, 1) == (0, 0, 1, 1), "a box of one pixel"
    assert from_voc(2, 3, 5, 9) == (1, 2, 5, 9)
    assert to_voc(*from_voc(2, 3, 5, 9)) == (2, 3, 5, 9)


def test_objects_as_the_official_files_have_them():
    found = parse_voc_xml(b"""<annotation>
	<filename>000005.jpg</filename><folder>VOC2007</folder>
	<object>
		<name>person</name>
		<bndbox><xmax>12</xmax><xmin>3</xmin><ymax>9</ymax><ymin>45.70000076293945e-1</ymin></bndbox>
		<difficult>1</difficult><occluded>0</occluded><pose>Left</pose><truncated>1</truncated>
		<part><name>head</name><bndbox><xmin>400</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax>
		</bndbox></part>
	</object>
	<object><name> potted
	plant </name>
		<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>10</ymax></bndbox></object>
	<segmented>0</segmented>
	<size><depth>3</depth><height>10</height><width>20</width></size>
</annotation>""")
    assert found.faults == []
    assert found.size == (10, 20)
    assert found.names == ["person", "potted plant"]
    assert found.boxes == [(2, pytest.approx(3.570000076293945), 12, 9), (0, 0, 20, 10)]
    difficult, crowd, truncated, occluded, clipped = zip(*found.flags, strict=True)
    assert (difficult, truncated) == ((True, False), (True, False)), "what is missing is 0"
    assert not any((*crowd, *occluded, *clipped))


def test_a_crowd_is_not_difficult():
    found = record(thing(more="<difficult>1</difficult><crowd>1</crowd>"))
    assert found.flags == [(False, True, False, False, False)]


@pytest.mark.parametrize(
    ("first_pixel", "values", "box"),
    [
        (1, (1, 1, 20, 10), (0, 0, 20, 10)),
        (0, (0, 0, 20, 10), (0, 0, 20, 10)),
        (1, (0, 0, 21, 11), (0, 0, 20, 10)),
        (0, (-3, 2, 5, 12.5), (0, 2, 5, 10)),
    ],
)
def test_what_is_partly_outside_is_clipped(first_pixel, values, box):
    found = record(thing(sides(*values)), first_pixel=first_pixel)
    assert found.boxes == [box]
    exact = values == ((1, 1, 20, 10) if first_pixel else (0, 0, 20, 10))
    assert found.flags[0][-1] is not exact


@pytest.mark.parametrize(
    ("objects", "place", "problem"),
    [
        (thing(name=""), "object 1 (no name)", "<name> is missing"),
        (thing() + thing(""), "object 2 (dog)", "<bndbox> is missing"),
        (thing("<bndbox><xmin>1</xmin></bndbox>"), "object 1 (dog)", "<bndbox> has no <ymin>"),
        (thing(sides(5, 1, 4, 2)), "object 1 (dog)", "<xmin> is 5, larger than <xmax>, 4"),
        (thing(sides(1, 9, 4, 2)), "object 1 (dog)", "<ymin> is 9, larger than <ymax>, 2"),
        (thing(sides(1, "nan", 4, 2)), "object 1 (dog)", "<ymin> is nan, must be a number"),
        (thing(sides("-inf", 1, 4, 2)), "object 1 (dog)", "<xmin> is -inf, must be a number"),
        (thing(sides(1, 1, "1e20", 2)), "object 1 (dog)", "<xmax> is 1e20, must be a number"),
        (thing(sides(1, 1, "four", 2)), "object 1 (dog)", "<xmax> is four, must be a number"),
        (thing(sides(21, 1, 24, 2)), "object 1 (dog)", "is wholly outside the image of 20 x 10"),
        (thing(sides(-4, 1, 0, 2)), "object 1 (dog)", "the box -4, 1, 0, 2 is wholly outside"),
        (thing(sides(20.999, 1, 22, 2)), "object 1 (dog)", "has no area within the image: 0.001"),
        (thing(BOX + sides(1, 1, 2, 2)), "object 1 (dog)", "has two different <xmin>"),
        (thing(more="<difficult>maybe</difficult>"), "object 1 (dog)", "<difficult> is maybe"),
    ],
)
def test_objects_that_are_wrong(objects, place, problem):
    found = record(objects)
    assert len(found.faults) == 1
    assert found.faults[0][0] == place
    assert problem in found.faults[0][1]
    assert len(found.boxes) == objects.count("<object>") - 1


@pytest.mark.parametrize(
    ("size", "problem"),
    [
        ("", "<size> is missing"),
        ("<size><width>20</width></size>", "<size> has no <height>"),
        ("<size><width>0</width><height>0</height></size>", "0 x 0 is no size of an image"),
        ("<size><width>1e9</width><height>2</height></size>", "is no size of an image"),
        ("<size><width>2.5</width><height>2</height></size>", "2.5 x 2 is no size"),
        ("<size><width>x</width><height>nan</height></size>", "x x nan is no size"),
    ],
)
def test_sizes_that_are_wrong(size, problem):
    found = record(thing(), size)
    assert [place for place, _ in found.faults] == [None]
    assert problem in found.faults[0][1]


BOMB = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10 if n else "lol"}">' for n in range(9))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "is malformed XML: no element found"),
        (b"<annotation><size>", "is malformed XML"),
        (b"\xff\xfe\x00<", "is malformed XML"),
        (
            b'<?xml version="1.0" encoding="martian"?><annotation/>',
            "an encoding that cannot be read",
        ),
        (b"<html><body/></html>", "is no VOC annotation: its first element is <html>"),
        (f"<!DOCTYPE a [{BOMB}]><annotation>&l8;</annotation>".encode(), "document type"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "document type"),
        (b"<!DOCTYPE annotation><annotation/>", "document type"),
        ('<?xml version="1.0"?><!DOCTYPE a><annotation/>'.encode("utf-16"), "document type"),
        (b"<annotation>&l8;</annotation>", "is malformed XML: undefined entity"),
        (b" " * (voc_xml.MAX_BYTES + 1), "no annotation of an image is that large"),
        (b"<annotation>" + b"<a>" * 100_000, "is malformed XML: no element found"),
    ],
)
def test_files_that_are_none(text, problem):
    with pytest.raises(ValueError, match=problem):
        parse_voc_xml(text)


def test_what_is_deeper_than_a_side_is_not_taken_for_it():
    inside = "<bndbox><xmin>2<x>7</x></xmin><ymin>3</ymin><xmax>5</xmax><ymax>9</ymax></bndbox>"
    assert record(thing(f"{BOX}<part>{inside}</part>")).boxes == [(1, 2, 5, 9)]


def test_classes_are_those_in_the_files_by_name_where_none_are_given(tmp_path):
    for number, names in enumerate((("zebra", "ant"), (), ("bee",))):
        objects = "".join(thing(name=f"<name>{name}</name>") for name in names)
        file = tmp_path / f"{number}.xml"
        file.write_text(f"<annotation>{SIZE}{objects}</annotation>")
    files = [str(tmp_path / f"{number}.xml") for number in range(3)]
    table, classes = read_xml_files(files, None)
    assert classes == ("ant", "bee", "zebra")
    assert table.labels.tolist() == [2, 0, 1]
    assert table.ends.tolist() == [2, 2, 3]
    assert table.counts().tolist() == [2, 0, 1]
    part = table.part([2, 1])
    assert (part.labels.tolist(), part.ends.tolist()) == ([1], [1, 1])
    assert part.sizes is not None
    assert part.sizes.tolist() == [[10, 20]] * 2
    assert read_xml_files(files, ("zebra", "ant", "bee"))[0].labels.tolist() == [0, 1, 2]


def test_files_that_cannot_be_read_are_named_with_the_others(tmp_path):
    files = [str(tmp_path / f"{number}.xml") for number in range(3)]
    (tmp_path / "1.xml").write_text(f"<annotation>{SIZE}{thing()}</annotation>")
    with open(files[2], "wb") as file:
        file.truncate(10 << 30)  # a hole: it is not read
    with pytest.raises(UserError) as caught:
        read_xml_files(files, ("dot", "cat"))
    assert str(caught.value) == (
        f"{files[0]}: there is no such file (and 2 more faults in 3 files)"
    )
    assert caught.value.code == Exit.DATA
    assert caught.value.faults[1:] == (  # pyright: ignore[reportAttributeAccessIssue]
        f'{files[1]}: object 1: "dog" is no class',
        f"{files[2]}: has 10,737,418,240 bytes: no annotation of an image is that large",
    )
