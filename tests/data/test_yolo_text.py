"""YOLO's text: what a line means, and each way in which it can be wrong."""

from __future__ import annotations

import pytest

from cnnctl.data import yolo_text
from cnnctl.data.yolo_text import parse_yolo_text, read_names, read_yolo_files
from cnnctl.errors import Exit, UserError

CLASSES = ("cat", "dog", "cow")


@pytest.fixture
def read(tmp_path):
    def reading(*texts: str | bytes | None, classes=CLASSES):
        files: list[str | None] = []
        for number, text in enumerate(texts):
            file = tmp_path / f"{number}.txt"
            if text is not None:
                file.write_bytes(text if isinstance(text, bytes) else text.encode())
            files.append(None if text is None else str(file))
        return read_yolo_files(files, classes)

    return reading


def test_lines_become_boxes_in_shares_of_the_sides(read):
    table, remarks = read(
        "2 0.5 0.5 0.2 0.4\n\n0 0.25 0.125 0.5 0.25  \r\n", None, "", b"\xef\xbb\xbf1.0 .5 .5 1 1"
    )
    assert remarks == []
    assert table.sizes is None
    assert table.ends.tolist() == [2, 2, 2, 3]
    assert table.labels.tolist() == [2, 0, 1]
    expected = [[0.4, 0.3, 0.6, 0.7], [0, 0, 0.5, 0.25], [0, 0, 1, 1]]
    assert table.boxes.tolist() == [pytest.approx(row) for row in expected]
    assert not table.difficult.any()
    assert not table.crowd.any()


def test_an_outline_gives_the_box_around_it(read):
    table, remarks = read("1 0.1 0.2 0.5 0.1 0.3 0.9\n0 0.5 0.5 0.2 0.2", "0 0 0 1 0 1 1 0 1")
    assert table.boxes.tolist() == [
        pytest.approx(row) for row in ([0.1, 0.1, 0.5, 0.9], [0.4, 0.4, 0.6, 0.6], [0, 0, 1, 1])
    ]
    assert remarks == ["2 outlines: the boxes around them are taken"]


def test_what_reaches_beyond_the_image_is_clipped_and_counted(read):
    table, _ = read("0 0.05 0.5 0.2 0.4\n0 0.5 0.5 1.0005 0.4")
    expected = [[0, 0.3, 0.15, 0.7], [0, 0.3, 1, 0.7]]
    assert table.boxes.tolist() == [pytest.approx(row) for row in expected]
    assert table.clipped is not None
    assert table.clipped.tolist() == [True, False], "half a pixel is a tool's rounding"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("0 320 240 100 50", "holds 320, must be shares of the sides, from 0 to 1, not pixels"),
        ("0 0.5 0.5 1.2 0.5", "holds 1.2, must be shares of the sides, from 0 to 1"),
        ("0 -0.1 0.5 0.2 0.5", "holds -0.1: shares of the sides are not negative"),
        ("0 0.1 0.5 0.2 -0.5", "holds -0.5: shares of the sides are not negative"),
        ("0 0.1 0.5 0 0.5", "the box has no area within the image"),
        ("0 0.1 0.5 0.2 0.5 0.1 0.5", "the box has no area within the image"),
        ("0 0.1 0.5 0.2 1e-9", "the box has no area within the image"),
        ("0 1.0009 0.5 0.0001 0.5", "the box has no area within the image"),
        ("0 0.1 nan 0.2 0.5", "holds nan, which is no number"),
        ("0 0.1 inf 0.2 -inf", "holds inf, which is no number"),
        ("0 1e308 1e308 1e308 1e308", "holds inf, which is no number"),
        ("nan 0.1 0.1 0.2 0.5", "holds nan, which is no number"),
        ("3 0.5 0.5 0.2 0.5", "class 3 is none of the 3, 0 to 2"),
        ("-1 0.5 0.5 0.2 0.5", "class -1 is none of the 3, 0 to 2"),
        ("0.5 0.5 0.5 0.2 0.5", "class 0.5 is no whole number"),
        ("cat 0.5 0.5 0.2 0.5", '"cat 0.5 0.5 0.2 0.5" is no row of numbers'),
        ("0,0.5,0.5,0.2,0.5", '"0,0.5,0.5,0.2,0.5" is no row of numbers'),
        ("0 0.5 0.5 0.2", "has 4 columns, must be class, x, y, width, height"),
        ("0", "has 1 column, must be class, x, y, width, height"),
        ("0 0.5 0.5 0.2 0.5 0.9", "has 6 columns, must be class, x, y, width, height: with a score "
         "it is a prediction"),
        ("0 0.1 0.5 0.2 0.5 0.1 0.5 0.3", "has 8 columns, must be class, x, y, width, height"),
    ],
)  # fmt: skip
def test_lines_that_are_wrong(read, tmp_path, line, problem):
    with pytest.raises(UserError) as caught:
        read("0 0.5 0.5 0.2 0.2", f"\n0 0.5 0.5 0.2 0.2\n{line}\n")
    assert str(caught.value) == f"{tmp_path}/1.txt: line 3: {problem}"
    assert caught.value.code == Exit.DATA


def test_all_faults_are_found_in_one_pass(read, tmp_path):
    with pytest.raises(UserError) as caught:
        read("7 0.5 0.5 0.2 0.2\n0 9 9 9 9", "zero", "0 0.5 0.5 0.2 0.2", "0 .5 .5 .2 .2 .1")
    assert str(caught.value) == (
        f'{tmp_path}/1.txt: line 1: "zero" is no row of numbers (and 3 more faults in 3 files)'
    )
    faults = caught.value.faults  # pyright: ignore[reportAttributeAccessIssue]
    assert [fault.removeprefix(f"{tmp_path}/")[:13] for fault in faults] == [
        "1.txt: line 1", "3.txt: line 1", "0.txt: line 1", "0.txt: line 2",
    ]  # fmt: skip


def test_numbers_from_1_are_recognised(read):
    with pytest.raises(UserError, match="no line has class 0: the numbers seem to begin at 1"):
        read("1 .5 .5 .2 .2\n3 .5 .5 .2 .2", "2 .5 .5 .2 .2")
    with pytest.raises(UserError, match=r"class 3 is none of the 3, 0 to 2$"):
        read("0 .5 .5 .2 .2\n3 .5 .5 .2 .2")


def test_files_that_cannot_be_read(tmp_path):
    large = tmp_path / "large.txt"
    with open(large, "wb") as file:
        file.truncate(10 << 30)  # a hole: it is not read
    with pytest.raises(UserError, match="no image has that many boxes"):
        read_yolo_files([str(large)], CLASSES)
    with pytest.raises(UserError, match="there is no such file"):
        read_yolo_files([str(tmp_path / "none.txt")], CLASSES)
    assert parse_yolo_text(b"\xff\x00 1 2 3 4").faults == [
        (1, '"\\xff\x00 1 2 3 4" is no row of numbers')
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("data.yaml", "train: ../train\nnames:\n  0: cat\n  1: dog\n  2: cow\n"),
        ("data.yml", "nc: 3\nnames: ['cat', 'dog', 'cow']\n"),
        ("classes.txt", "cat\r\ndog\n cow\n\n"),
        ("obj.names", "\ufeffcat\ndog\ncow"),
    ],
)
def test_names_of_the_classes(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_names([tmp_path / "none", tmp_path]) == CLASSES


def test_numbers_can_be_names(tmp_path):
    (tmp_path / "data.yaml").write_text("names: [0, 1, 2.5]")
    assert read_names([tmp_path]) == ("0", "1", "2.5")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("names: [cat", "is no YAML that can be read"),
        ("names: [cat, cat]", 'has the class "cat" twice'),
        ("names: {1: cat, 2: dog}", "the numbers of the classes must be 0, 1, 2 and so on"),
        ("names: {cat: 0}", "the numbers of the classes must be 0, 1, 2 and so on"),
        ("names: cat", "must be a list of names"),
        ("names: [[cat]]", "must be a list of names"),
        ("names: [cat, dog]\nnc: 3", "nc is 3, and there are 2 names"),
        ("names: !!python/object/apply:os.system [ls]", "is no YAML that can be read"),
        ("[" * 2000, "is no YAML that can be read"),
        ("train: images", "the classes have no names"),
        ("names: []", "the classes have no names"),
    ],
)
def test_name_files_that_are_wrong(tmp_path, text, problem):
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(UserError, match=problem) as caught:
        read_names([tmp_path])
    assert "data.classes=" in (caught.value.advice or "")


def test_an_empty_line_among_the_names_is_asked_about(tmp_path):
    (tmp_path / "classes.txt").write_text("cat\n\ndog\n")
    with pytest.raises(UserError, match="line 2 is empty"):
        read_names([tmp_path])


def test_two_files_that_name_different_classes(tmp_path):
    (tmp_path / "data.yaml").write_text("names: [cat, dog]")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert read_names([tmp_path]) == ("cat", "dog")
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    with pytest.raises(UserError, match=r"names other classes than .*: dog, cat there cat, dog"):
        read_names([tmp_path])


def test_threads_keep_the_order_of_files(read):
    count = 3 * yolo_text._CHUNK + 5
    table, _ = read(*("0 0.5 0.5 0.5 0.5\n" * (n % 3) for n in range(count)))
    assert table.counts().tolist() == [n % 3 for n in range(count)]
