"""Every peer trains the network that ours trains, from the same weights on the same images."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F

from cnnctl.data.loaders import Normalize
from cnnctl.errors import Exit, UserError
from cnnctl.peers import lightning_trainer, reference_loop, thirty_lines, timm_loop
from cnnctl.peers.works import epoch
from cnnctl.peers.works.base import Asked, eager
from cnnctl.peers.works.table import Work

CPU = torch.device("cpu")
PEERS = {"reference_loop": reference_loop, "thirty_lines": thirty_lines}
LIBRARIES = {"timm": timm_loop, "lightning": lightning_trainer}
RECIPE = (
    *("model=mlp", "model.widths=[16]", "optimizer=sgd", "optimizer.lr=0.05"),
    *("optimizer.nesterov=true", "schedule=constant", "trainer.decay_norm_and_bias=true"),
    "trainer.batch_size=64",
)


@pytest.fixture(scope="module", autouse=True)
def drawn_once(tmp_path_factory) -> Iterator[None]:
    kept = {split: epoch.DigitImages(split, 128, 16) for split in ("train", "test")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            epoch, "DigitImages", lambda split, count, side: epoch.Rows(kept[split], count)
        )
        patch.setattr(epoch, "_TEST", 100)
        patch.setenv("CNNCTL_DATA", str(tmp_path_factory.mktemp("empty")))
        yield


def made(folder, images: int, *more: str) -> epoch.Epoch:
    work = Work("", "epoch", (*RECIPE, *more), images, side=16)
    return epoch.made(work, Asked(eager(CPU), folder))


def check_one_step(folder, peers) -> None:
    """All images in one batch, none augmented: one step, whatever their order."""
    job = made(folder, 64, "augmentation=none")
    assert (job.padding, job.flip, job.images, job.data) == (0, False, 64, "drawn digits, 16 x 16")
    pixels = Normalize(job.train.mean, job.train.std, CPU)(job.train.pixels)
    with torch.no_grad():
        expected = float(F.cross_entropy(job.fresh()(pixels), job.train.labels))
    assert expected == pytest.approx(2.3, abs=0.4)
    ours = job.ours()
    for name, side in {"ours": ours, **{name: m.side(job) for name, m in peers.items()}}.items():
        side.run()
        figures = side.figures()
        assert figures["loss"] == pytest.approx(expected, abs=1e-5), name
        assert figures["top1"] == ours.figures()["top1"], name


def test_one_step_is_the_same_by_all(tmp_path):
    check_one_step(tmp_path, PEERS)


def test_a_turn_begins_anew(tmp_path):
    job = made(tmp_path, 128, "augmentation=standard", "augmentation.flip=true")
    assert (job.padding, job.flip, job.images) == (2, True, 128)
    for side in (job.ours(), reference_loop.side(job), thirty_lines.side(job)):
        figures = []
        for _ in range(2):
            torch.manual_seed(1)
            side.run()
            figures.append(side.figures())
        assert figures[0] == figures[1]


def test_crops_and_flips_by_hand_move_whole_images(tmp_path):
    """What a network sees in the thirty lines: a window of an image of the data, or its mirror."""
    job = made(tmp_path, 64, "augmentation=standard", "augmentation.flip=true")
    seen: list[torch.Tensor] = []

    class Looks(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = torch.nn.Parameter(torch.zeros(10))

        def forward(self, pixels):
            seen.append(pixels)
            return self.bias.expand(len(pixels), 10)

    _, losses = thirty_lines.by_hand(job, Looks())
    assert [float(loss) for loss in losses] == [pytest.approx(2.302585)]
    padded = F.pad(job.train.pixels, (2, 2, 2, 2))
    mean, std = (torch.tensor(v)[:, None, None] for v in (job.train.mean, job.train.std))
    windows = torch.stack(
        [padded[:, :, y : y + 16, x : x + 16] for y in range(5) for x in range(5)], 1
    )
    windows = torch.cat([windows, windows.flip(4)], 1).flatten(0, 1)  # (64 * 50, 3, 16, 16)
    found = (seen[0] * std + mean) * 255
    exact = "donot_use_mm_for_euclid_dist"
    distance = torch.cdist(found.flatten(1), windows.float().flatten(1), compute_mode=exact)
    assert distance.amin(1).max() < 0.01
    assert len((distance.argmin(1) // 50).unique()) == 64  # every image once


def test_fewer_images_than_a_batch(tmp_path):
    with pytest.raises(Exception, match="63 are less than a batch of 64"):
        made(tmp_path, 63)


def test_digits_stand_in_only_where_no_data_is_named(tmp_path):
    named = Asked(eager(CPU), tmp_path, root=str(tmp_path / "here"))
    with pytest.raises(UserError) as raised:
        epoch.made(Work("", "epoch", RECIPE, 64, side=16), named)
    assert raised.value.code == Exit.DATA
    with pytest.raises(UserError, match="unknown key"):
        made(tmp_path, 64, "model.no_such_key=1")


def test_sgd_by_hand_is_fused_where_ours_is(tmp_path, monkeypatch):
    """On a GPU; which kernels a CPU has of it is torch's affair."""
    job = made(tmp_path, 64, "augmentation=none")
    asked: list[bool] = []
    plain = job.optimizer
    monkeypatch.setattr(job, "optimizer", lambda m, fused: (asked.append(fused), plain(m))[1])
    thirty_lines.side(job).run()
    assert asked == [False]
    assert plain(job.fresh()).defaults["fused"] is None
    assert plain(job.fresh(), fused=True).defaults["fused"] is True


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARIES)
def test_libraries_where_they_are_installed(name, tmp_path):
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install 'cnnctl[peers]'")
    check_one_step(tmp_path, {name: LIBRARIES[name]})
    job = made(tmp_path, 128, "augmentation=standard", "augmentation.flip=true")
    side = LIBRARIES[name].side(job)
    side.run()
    assert side.figures()["loss"] == pytest.approx(2.3, abs=0.4)
