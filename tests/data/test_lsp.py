"""Leeds Sports Pose, on a fake of its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from cnnctl.data.base import NoSplit
from cnnctl.data.lsp import LSP, SKELETON, read_joints
from cnnctl.errors import Exit, UserError

SIZE = (40, 50)  # w, h


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,006 images, of which those that are looked at are not the same file."""
    home = tmp_path_factory.mktemp("data")
    folder = home / "lsp" / "images"
    folder.mkdir(parents=True)
    Image.new("RGB", SIZE, "red").save(folder / "im0001.jpg")
    for number in range(2, 1007):
        (folder / f"im{number:04d}.jpg").hardlink_to(folder / "im0001.jpg")
    savemat(home / "lsp" / "joints.mat", {"joints": joints()})
    return home


def joints() -> np.ndarray:
    rng = np.random.default_rng(0)
    made = np.empty((3, 14, 1006))
    made[0], made[1] = rng.uniform(5, 35, (14, 1006)), rng.uniform(5, 45, (14, 1006))
    made[2] = rng.integers(0, 2, (14, 1006))
    made[:, :, 1000] = 0
    made[:2, :, 1000] = [[10] * 13 + [20], [8] * 13 + [48]]
    made[2, 3, 1000] = 1
    made[0, 5, 1000] = 41.5  # one pixel outside
    return made


def test_joints_are_moved_to_pixels_and_hidden_ones_are_told(root: Path):
    data = LSP("test", str(root))
    image, truth = data[0]
    assert image.shape == (3, 50, 40)
    points = truth["keypoints"]
    assert points.shape == (1, 14, 3)
    assert points[0, 0].tolist() == [9.5, 7.5, 2]
    assert points[0, 3].tolist() == [9.5, 7.5, 1]
    assert points[0, 5].tolist() == [0, 0, 0]  # outside of the image
    assert points[0, 13].tolist() == [19.5, 47.5, 2]
    # Around 9.5 to 19.5 and 7.5 to 47.5, a tenth and a pixel larger each way, cut at 50.
    assert truth["boxes"].tolist() == [[7.5, 2.5, 21.5, 50.0]]
    assert truth["area"].tolist() == [14 * 47.5]
    assert truth["labels"].tolist() == [0]
    assert data.classes == ("person",)


def test_the_first_thousand_are_for_training_and_a_share_is_held_out(root: Path):
    parts = {split: LSP(split, str(root)) for split in ("train", "val", "test")}
    assert {split: len(part) for split, part in parts.items()} == {
        "train": 900,
        "val": 100,
        "test": 6,
    }
    train, val = set(parts["train"].chosen.tolist()), set(parts["val"].chosen.tolist())
    assert not train & val
    assert train | val == set(range(1000))
    assert parts["test"].path(0).endswith("im1001.jpg")
    assert len({part.fingerprint() for part in parts.values()}) == 3
    assert len(LSP("train", str(root), validation=0)) == 1000
    with pytest.raises(NoSplit):
        LSP("val", str(root), validation=0)


def test_the_skeleton_is_a_person():
    order = SKELETON.mirrored().tolist()
    for point, other in enumerate(order):
        name = SKELETON.names[point]
        sides = {"left": "right", "right": "left"}
        first, _, rest = name.partition("_")
        assert SKELETON.names[other] == (f"{sides[first]}_{rest}" if first in sides else name)
    # Each stick's mirror image is a stick.
    sticks = {frozenset(stick) for stick in SKELETON.sticks}
    assert {frozenset(order[end] for end in stick) for stick in sticks} == sticks


def wrong(tmp_path: Path, **held: np.ndarray) -> UserError:
    savemat(tmp_path / "joints.mat", held)
    with pytest.raises(UserError) as caught:
        read_joints(tmp_path / "joints.mat")
    assert caught.value.code == Exit.DATA
    return caught.value


def test_files_that_are_not_its_own_are_refused(tmp_path: Path):
    assert 'no matrix "joints"' in str(wrong(tmp_path, other=joints()))
    extended = joints().transpose(1, 0, 2)
    assert "(14, 3, 1006)" in str(wrong(tmp_path, joints=extended))
    for value, place in ((np.nan, (0, 3, 7)), (2.0, (2, 3, 7))):
        made = joints()
        made[place] = value
        assert "image 8" in str(wrong(tmp_path, joints=made))
    (tmp_path / "joints.mat").write_bytes(b"no Matlab file")
    with pytest.raises(UserError, match="Matlab"):
        read_joints(tmp_path / "joints.mat")


def test_absent_files_are_named(tmp_path: Path, root: Path):
    with pytest.raises(UserError) as caught:
        LSP("train", str(tmp_path))
    assert caught.value.code == Exit.DATA
    (tmp_path / "images").mkdir()
    savemat(tmp_path / "joints.mat", {"joints": joints()[:, :, :4]})
    with pytest.raises(UserError, match="4 of 4 images"):
        LSP("train", str(tmp_path), validation=0)
    with pytest.raises(UserError, match="has 4 images"):
        LSP("test", str(tmp_path))
    assert LSP.missing(str(root)) == []
    assert torch.is_tensor(LSP("train", str(root / "lsp"))[0][0])
