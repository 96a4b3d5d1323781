"""``cnnctl data``: each action as a user types it, in this process."""

from __future__ import annotations

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
    assert cnnctl(capsys, "check")[:2] == (
        0,
        "data=digits: with the packages\nread 1,078 train, 359 val, 360 test: all whole\n",
    )
    fill(tmp_path / "mine")
    broken = [tmp_path / "mine" / "ant" / "3.png", tmp_path / "mine" / "bee" / "4.png"]
    for path in broken:
        path.write_bytes(b"")
    code, out, _ = cnnctl(capsys, "check", "data=folder", f"data.root={tmp_path / 'mine'}")
    assert code == 3
    for path in broken:
        assert f"{path}: is empty (0 bytes)" in out
    assert "2 fault(s)" in out


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
