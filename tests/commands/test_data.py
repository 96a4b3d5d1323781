"""``cnnctl data``: each action as a user types it, in this process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnctl import compose
from cnnctl.cli import main
from cnnctl.data.digits import Digits


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CNNCTL_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("cnnctl.commands.data._WIDE", 500)  # no cell is folded


def cnnctl(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["data", *arguments])
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out, said.err


def fill(root: Path, count: int = 10) -> None:
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (12, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")


def test_list_has_every_yaml_and_says_where_it_looks(capsys, tmp_path):
    code, out, _ = cnnctl(capsys)
    assert code == 0
    for path in (compose.conf_dir() / "data").glob("*.yaml"):
        assert path.stem in out
    assert "with the packages" in out
    assert "needs MNIST/raw/train-images-idx3-ubyte and 3 more" in out


def test_show(capsys, tmp_path):
    code, out, _ = cnnctl(capsys, "show", "data=digits")
    assert code == 0
    words = out.split()
    assert {"1,078", "359", "360"} <= set(words)
    assert "stated (0.3041)  measured (0.3041)" in out
    picture = tmp_path / "data-digits-train.png"
    assert str(picture) in out
    with Image.open(picture) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (10 * 72, 150 + 12 * 72, 3)
    # The first cell of the first row is a zero, enlarged eight times: 64 = 72 - 4 rounded down.
    zero = pixels[0:64:8, 150:214:8, 0]
    train = Digits("train")
    zeros = train.pixels[train.labels == 0][:, 0].numpy()
    assert (zeros == zero).all((1, 2)).sum() == 1


def test_show_a_folder(capsys, tmp_path):
    fill(tmp_path / "mine")
    code, out, _ = cnnctl(capsys, "show", "data=folder", f"data.root={tmp_path / 'mine'}")
    assert code == 0
    assert "3 channel(s), height 12, width 20" in out
    assert (tmp_path / "data-folder-train.png").is_file()


def test_check(capsys, tmp_path):
    whole = "read 1,078 train, 359 val, 360 test: all whole\n"
    report = tmp_path / "data-digits-check.txt"
    assert cnnctl(capsys, "check")[:2] == (
        0,
        f"data=digits: with the packages\n{whole}report: {report}\n",
    )
    assert report.read_text() == whole
    fill(tmp_path / "mine")
    broken = [tmp_path / "mine" / "ant" / "3.png", tmp_path / "mine" / "bee" / "4.png"]
    for path in broken:
        path.write_bytes(b"")
    code, out, _ = cnnctl(capsys, "check", "data=folder", f"data.root={tmp_path / 'mine'}")
    assert code == 3
    for path in broken:
        assert f"{path}: is empty (0 bytes)" in out
    assert "2 fault(s)" in out


def boxed(root: Path, part: str, count: int, *boxes: Sequence[float]) -> Path:
    """``count`` images of 20 x 10 in a folder, and ``boxes`` on the first of them."""
    folder = root / part
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (20, 10), (i, 60 * len(part), 0)).save(folder / f"{i}.png")
    images = [{"id": i, "width": 20, "height": 10, "file_name": f"{i}.png"} for i in range(count)]
    things = [
        {"id": n, "image_id": 0, "category_id": 1, "bbox": box} for n, box in enumerate(boxes, 1)
    ]
    content = {"images": images, "categories": [{"id": 1, "name": "cat"}], "annotations": things}
    file = folder / "boxes.json"
    file.write_text(json.dumps(content))
    return file


def test_check_finds_all_faults_of_all_splits_in_one_pass(capsys, tmp_path):
    root, good = tmp_path / "mine", [1, 1, 4, 4]
    boxed(root, "train", 3, good)
    val = boxed(root, "val", 2, good, *([k / 2, 1, 0, 4] for k in range(1, 24)))
    test = boxed(root, "test", 2, good, [1, 1, 4, float("inf")])
    resized, broken = root / "train/1.png", root / "train/2.png"
    Image.new("RGB", (10, 5)).save(resized)
    broken.write_bytes(b"")
    code, out, err = cnnctl(capsys, "check", "data=boxes", f"data.root={root}")
    assert (code, err) == (3, "")
    written = tmp_path / "data-boxes-check.txt"
    assert out.endswith(f"read 3 train: 26 fault(s)\nreport: {written}\n")
    lines = written.read_text().splitlines()
    faults = [line for line in lines if line.startswith("fault: ")]
    assert faults == [
        *(
            f"fault: val: {val}: annotations[{n}] (id {n + 1}): bbox[2]: the width is 0, must be "
            "> 0"
            for n in range(1, 24)
        ),
        f"fault: test: {test}: annotations[1] (id 2): bbox[3]: is not finite",
        f"fault: train: {resized}: the image is 10 x 5, {root}/train/boxes.json says 20 x 10",
        f"fault: train: {broken}: is empty (0 bytes)",
    ]
    shown = [line for line in out.splitlines() if line.startswith("fault: ")]
    assert shown == faults[:20]
    assert "and 6 more faults, which the report lists\n" in out
    assert "images not read until these are corrected: val, test" in lines


def test_check_says_a_shared_fault_once_and_counts_what_it_does_not_list(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr("cnnctl.data.coco_json.KEPT", 2)
    file = boxed(tmp_path / "mine", "all", 2, *([1, 1, 0, k] for k in range(1, 6)))
    given = (f"data.annotations={file}", f"data.images={file.parent}")
    code, out, _ = cnnctl(capsys, "check", "data=coco", "task=detect", *given)
    assert code == 3
    faults = [line for line in out.splitlines() if line.startswith("fault: ")]
    assert faults[0].startswith(f"fault: train, val, test: {file}: annotations[0] (id 1): bbox")
    assert len(faults) == 2
    assert "and 3 more faults, which are counted and not listed\n" in out
    assert "read nothing: 5 fault(s)\n" in out


def test_a_split_with_one_fault_does_not_hide_another(capsys, tmp_path):
    root = tmp_path / "mine"
    boxed(root, "train", 2, [1, 1, 4, 4])
    val, test = (boxed(root, part, 2, [1, 1, 4, 4]) for part in ("val", "test"))
    val.write_text('{"images": [], "annotations": ')
    test.write_text('{"images": 5, "annotations": []}')
    code, out, _ = cnnctl(capsys, "check", "data=boxes", f"data.root={root}")
    assert code == 3
    assert f"fault: val: {val}: is no whole JSON file: Expecting value at line 1" in out
    assert f'fault: test: {test}: "images" is' in out
    assert "read 2 train: 2 fault(s)" in out


def test_absent_data_is_exit_code_3_and_one_sentence(capsys, tmp_path):
    code, out, err = cnnctl(capsys, "check", "data=mnist")
    assert (code, out) == (3, "")
    first, advice = err.strip().splitlines()
    assert first.startswith(f"error: {tmp_path / 'data'}: data=mnist was looked for")
    assert "cnnctl data fetch data=mnist" in advice


def test_fetch_where_nothing_is_to_be_fetched(capsys):
    code, out, _ = cnnctl(capsys, "fetch")
    assert code == 0
    assert "nothing to fetch" in out
    assert "read and whole: 1,078 train, 359 val, 360 test" in out
    code, out, _ = cnnctl(capsys, "fetch", "data=folder")
    assert code == 0
    assert "your own" in out


def test_a_picture_that_cannot_be_written_is_the_machines_fault(capsys, tmp_path):
    (tmp_path / "data-digits-train.png").mkdir()
    code, _, err = cnnctl(capsys, "show")
    assert code == 5
    assert "data-digits-train.png: cannot be written" in err


def test_a_report_that_cannot_be_written_is_the_machines_fault(capsys, tmp_path):
    (tmp_path / "data-digits-check.txt").mkdir()
    code, out, err = cnnctl(capsys, "check")
    assert code == 5
    assert "all whole" in out, "what was found is said all the same"
    assert "data-digits-check.txt: cannot be written" in err
