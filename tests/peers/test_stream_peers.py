"""The same files, decoded and cropped by ours and by PIL."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from cnnctl.peers import pil_loader
from cnnctl.peers.works import stream
from cnnctl.peers.works.base import Asked, eager
from cnnctl.peers.works.table import WORKS, Work

# The whole image, only resized: 4 / 3 as wide as it is high.
WHOLE = ("augmentation.scale=[1.0,1.0]", "augmentation.ratio=[1.3333333,1.3333333]")


def test_both_read_the_same_images(tmp_path):
    overrides = [text for text in WORKS["jpegs"].overrides if ".size" not in text]
    work = Work("", "stream", (*overrides, "augmentation.size=32", *WHOLE), 6, side=64)
    job = stream.made(work, Asked(eager(torch.device("cpu")), tmp_path, root=str(tmp_path)))
    assert (job.images, job.batch) == (6, 6)
    assert job.data == "drawn JPEG, 64 x 48"
    drawn = sorted(tmp_path.glob("jpegs/*/*.jpg"))
    assert [Image.open(path).size for path in drawn] == [(64, 48)] * 6
    ours, theirs = job.ours(), pil_loader.side(job)
    threads = torch.get_num_threads()
    ours.run()
    theirs.run()
    assert torch.get_num_threads() == threads
    assert ours.figures() == pytest.approx(theirs.figures(), abs=0.02)
    assert abs(ours.figures()["deviation"]) > 0.1


def test_vocs_own_files_where_they_are(tmp_path):
    folder = tmp_path / "VOCdevkit" / "VOC2012" / "JPEGImages"
    folder.mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (20, 15), (10 * number, 0, 0)).save(folder / f"{number}.jpg")
    (tmp_path / "made").mkdir()
    asked = Asked(eager(torch.device("cpu")), tmp_path / "made", images=4, root=str(tmp_path))
    job = stream.made(WORKS["jpegs"], asked)
    assert job.data == "VOC's JPEG"
    assert len(job.files) == 4
    assert {tuple(job.files[index][0].shape) for index in range(4)} == {(3, 15, 20)}
