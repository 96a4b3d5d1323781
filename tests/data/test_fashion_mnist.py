"""Fashion-MNIST: MNIST's reader on a folder and with class names of its own."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

from cnnctl.data.fashion_mnist import FashionMNIST
from cnnctl.errors import UserError


def test_classes_are_torchvisions():
    from torchvision.datasets import FashionMNIST as Oracle

    assert list(FashionMNIST.classes) == Oracle.classes
    assert FashionMNIST._published() == Oracle.resources
    assert FashionMNIST.mirror


def test_it_reads_its_own_folder(tmp_path):
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    labels = np.arange(40, dtype=np.uint8) % 10
    for part in ("train", "t10k"):
        header = struct.pack(">IIII", 0x803, 40, 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">II", 0x801, 40)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    data = FashionMNIST("train", str(tmp_path), validation=0)
    assert torch.equal(data.pixels[:, 0], torch.from_numpy(images))
    assert data.labels.tolist() == labels.tolist()


def test_absent_data_names_its_own_files_and_option(tmp_path):
    with pytest.raises(UserError, match=r"data=fashion_mnist .* FashionMNIST/raw/train-images"):
        FashionMNIST("test", str(tmp_path))
