"""The store of features: what was put in comes out, a kill leaves what was whole."""

from __future__ import annotations

import errno
from collections import namedtuple

import numpy as np
import pytest
import torch
from torch import Tensor

from cnnctl.errors import Exit, UserError
from cnnctl.models import feature_cache
from cnnctl.models.feature_cache import (
    JOURNAL,
    FeatureFolder,
    FeatureStore,
    features_folder,
    image_digests,
    require_space,
    row_bytes,
)
from cnnctl.structures import Images, Targets

COLUMNS = {"own": ((), "int16"), "code": ((4,), "float32")}
ROWS = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).half().float()
OWN, CODE = torch.arange(5), torch.arange(20.0).view(5, 4)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def opened(tmp_path) -> FeatureStore:
    return FeatureStore(tmp_path / "store", 3, COLUMNS)


def add(store: FeatureStore, digests: list[str], counts: list[int], first: int) -> None:
    rows = slice(first, first + sum(counts))
    store.add(digests, counts, ROWS[rows], {"own": OWN[rows], "code": CODE[rows]})


def holds(store: FeatureStore, count: int) -> None:
    assert store.count == count
    np.testing.assert_array_equal(store.column(), ROWS[:count].numpy())
    np.testing.assert_array_equal(store.column("own"), OWN[:count].numpy())
    np.testing.assert_array_equal(store.column("code"), CODE[:count].numpy())


def filled(tmp_path) -> None:
    store = opened(tmp_path)
    assert not store.knows("a")
    add(store, ["a", "b"], [2, 1], 0)
    add(store, ["c"], [2], 3)
    holds(store, 5)
    store.close()


def test_what_is_put_in_comes_out_again_and_later(tmp_path):
    filled(tmp_path)
    store = opened(tmp_path)
    assert store.count == 0
    assert [store.knows(name) for name in "abc"] == [True] * 3
    holds(store, 5)
    assert not store.knows("d")
    holds(store, 5)


def test_other_data_drops_what_follows(tmp_path):
    filled(tmp_path)
    store = opened(tmp_path)
    assert store.knows("a")
    assert not store.knows("other")
    add(store, ["other"], [1], 2)
    holds(store, 3)
    store.close()
    store = opened(tmp_path)
    assert [store.knows(name) for name in ("a", "other", "c")] == [True, True, False]
    holds(store, 3)


@pytest.mark.parametrize("cut", ["rows", "own", "code", "journal", "line"])
def test_a_kill_leaves_what_was_whole(tmp_path, cut):
    filled(tmp_path)
    store = tmp_path / "store"
    name = JOURNAL if cut in ("journal", "line") else cut
    content = (store / name).read_bytes()
    if cut == "journal":  # rows were written, the journal does not know
        (store / name).write_bytes(b"".join(content.splitlines(keepends=True)[:2]))
    else:
        (store / name).write_bytes(content[:-1])
    again = opened(tmp_path)
    assert [again.knows(one) for one in "abc"] == [True, True, False]
    add(again, ["c"], [2], 3)
    holds(again, 5)


def test_images_without_regions(tmp_path):
    store = opened(tmp_path)
    add(store, ["a", "b"], [0, 0], 0)
    assert store.column().shape == (0, 3)
    assert store.column("code").shape == (0, 4)
    store.close()
    assert opened(tmp_path).knows("a")


def test_numbers_that_half_precision_has_not(tmp_path):
    store = FeatureStore(tmp_path / "store", 2, {})
    store.add(["a"], [1], torch.tensor([[1e9, -1e9]]), {})
    assert store.column().tolist() == [[65504, -65504]]
    assert row_bytes(2, {}) == 4
    assert row_bytes(3, COLUMNS) == 6 + 2 + 16


def weights(value: float = 0.0) -> list[Tensor]:
    return [torch.full((3,), value), torch.zeros(2, dtype=torch.int64)]


def test_a_folder_belongs_to_one_network_and_one_process(tmp_path):
    first = FeatureFolder(weights(), "settings")
    assert first.path.parent == features_folder() == tmp_path / "cnnctl" / "features"
    beside = FeatureFolder(weights(), "settings")  # as another process would
    assert beside.path != first.path
    for other in (FeatureFolder(weights(1.0), "settings"), FeatureFolder(weights(), "others")):
        assert other.path != first.path
        other.close(remove=True)
    beside.close(remove=True)
    first.store("svm", 3, COLUMNS).close()
    first.close(remove=False)
    again = FeatureFolder(weights(), "settings")
    assert again.path == first.path
    assert (again.path / "svm" / JOURNAL).is_file()
    again.drop("svm")
    assert not (again.path / "svm").exists()
    again.close(remove=True)
    assert list(features_folder().iterdir()) == []


def test_digests_see_the_image_and_its_truth_and_no_padding():
    pixels = torch.zeros(1, 1, 4, 6)
    pixels[..., :3, :5] = 1
    boxes, labels = torch.tensor([[[0.0, 0, 2, 2]]]), torch.tensor([[0]])
    images = Images(pixels, [(3, 5)], [(3, 5)], boxes)
    targets = Targets(torch.tensor([7]), boxes=boxes, labels=labels)
    (digest,) = image_digests(images, targets)

    def padded(column: Tensor, value: float, *by: int) -> Tensor:
        return torch.nn.functional.pad(column, by, value=value)

    wide = Images(padded(pixels, 0, 0, 3, 0, 2), [(3, 5)], [(3, 5)], padded(boxes, 0, 0, 0, 0, 4))
    more = Targets(
        torch.tensor([7]), boxes=padded(boxes, 0, 0, 0, 0, 2), labels=padded(labels, -1, 0, 2)
    )
    assert image_digests(wide, more) == [digest]
    changed = [
        (Images(pixels * 2, [(3, 5)], [(3, 5)], boxes), targets),
        (Images(pixels, [(3, 5)], [(3, 5)], boxes + 1), targets),
        (Images(pixels, [(3, 5)], [(6, 10)], boxes), targets),
        (images, Targets(torch.tensor([7]), boxes=boxes + 1, labels=labels)),
        (images, Targets(torch.tensor([7]), boxes=boxes, labels=labels + 1)),
    ]
    for other in changed:
        assert image_digests(*other) != [digest]


def test_a_disk_without_space_is_found_out_before(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda _: usage(3 * 10**9))
    require_space(tmp_path, 2 * 10**9)
    with pytest.raises(UserError, match=r"take 4\.0 GB, and this disk has 2\.7 GB left") as caught:
        require_space(tmp_path, 4 * 10**9)
    assert caught.value.code == Exit.MACHINE
    assert caught.value.field == "model.cache_gb"
    assert "model.cache_gb=1.4" in str(caught.value.advice)


def test_a_disk_that_fills_up_is_said(tmp_path, monkeypatch):
    store = opened(tmp_path)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(feature_cache, "_sync", full)
    with pytest.raises(UserError, match="the disk is full") as caught:
        add(store, ["a"], [2], 0)
    assert caught.value.code == Exit.MACHINE
    assert "lower model.cache_gb, then resume" in str(caught.value.advice)


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot be written") as caught:
        FeatureFolder(weights(), "")
    assert "XDG_CACHE_HOME" in str(caught.value.advice)


def test_processes_that_train_together_have_a_folder_each_and_leave_none(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)

    def folder(rank: int) -> FeatureFolder:
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
        return FeatureFolder([torch.ones(3)], "s")

    first, second = folder(0), folder(1)
    names = [one.path.name for one in (first, second)]
    assert len(set(names)) == 2
    for one in (first, second):
        one.store("svm", 3, {}).close()
        one.close(remove=False)
    second, first = folder(1), folder(0)  # of the next stage, the faster one first
    assert [first.path.name, second.path.name] == names
    for one in (second, first):
        one.drop("svm")
        one.close(remove=True)
    assert not list(features_folder().iterdir())


def test_a_second_run_of_the_same_network_leaves_no_folder():
    first, second = (FeatureFolder([torch.ones(3)], "s") for _ in range(2))
    second.close(remove=False)
    first.close(remove=False)
    assert [one.name for one in features_folder().iterdir()] == [first.path.name]
