"""Checkpoints: whole or not at all, damage noticed, nothing run, whatever the moment of a crash."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import pickle
import random
import resource
import signal
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from cnnctl.engine import checkpoint
from cnnctl.engine.checkpoint import Checkpoints
from cnnctl.errors import Exit, UserError


def state(step: int, size: int = 100) -> dict[str, Any]:
    return {
        "format": checkpoint.FORMAT,
        **dict.fromkeys(checkpoint.HOLDS),
        "config": {"seed": 0},
        "model": {"weight": torch.arange(size).float() + step, "count": torch.tensor(step)},
        "progress": {"total_steps": step, "pending": [{"loss": 0.1 * step}], "best": None},
    }


def save(directory: Path, step: int, *, best: bool = False, keep: bool = False) -> None:
    Checkpoints(directory).save(state(step), metric=0.5, best=best, keep=keep)


def step_of(given: dict[str, Any]) -> int:
    step = given["progress"]["total_steps"]
    assert torch.equal(given["model"]["weight"], torch.arange(100).float() + step)
    return step


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_round_trip(tmp_path):
    save(tmp_path, 7, best=True, keep=True)
    for name in ("last.pt", "best.pt", "step-7.pt"):
        read = checkpoint.read(tmp_path / name)
        assert step_of(read) == 7
        assert read["progress"] == {"total_steps": 7, "pending": [{"loss": 0.1 * 7}], "best": None}
        plain = torch.load(tmp_path / name, weights_only=True)  # by torch alone
        assert torch.equal(plain["model"]["weight"], read["model"]["weight"])
    assert not (tmp_path / "previous.pt").exists()
    save(tmp_path, 8)
    found, path, complaint = Checkpoints(tmp_path).load_last()
    assert (step_of(found), path, complaint) == (8, tmp_path / "last.pt", None)
    assert step_of(checkpoint.read(tmp_path / "previous.pt")) == 7
    assert step_of(checkpoint.read(tmp_path / "best.pt")) == 7


def flipped(data: bytes, where: float) -> bytes:
    changed = bytearray(data)
    changed[int(len(data) * where)] ^= 4
    return bytes(changed)


DAMAGE = {
    "empty": lambda data: b"",
    "30 %": lambda data: data[: len(data) * 3 // 10],
    "99.9 %": lambda data: data[: len(data) * 999 // 1000],
    "zero tail": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "flipped in the pickle": lambda data: flipped(data, 0.1),
    "flipped in a tensor": lambda data: flipped(data, 0.5),
    "flipped at the end": lambda data: flipped(data, 0.999),
    "something else": lambda data: b"<html>404</html>",
}


@pytest.mark.parametrize("manifest", ["there", "absent", "damaged"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_falls_back_to_the_one_before(damage, manifest, tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    last = tmp_path / "last.pt"
    last.write_bytes(DAMAGE[damage](last.read_bytes()))
    if manifest == "absent":  # then the archive's own checksums are all there is
        (tmp_path / "manifest.json").unlink()
    if manifest == "damaged":
        (tmp_path / "manifest.json").write_text('{"format": 1, "checkpo')
    if manifest != "there" and damage == "flipped at the end":
        pytest.skip("a bit in the archive's directory is in no checksum")
    found, path, complaint = Checkpoints(tmp_path).load_last()
    assert (step_of(found), path) == (1, tmp_path / "previous.pt")
    assert complaint is not None
    assert complaint.startswith(f"{last}: ")
    assert "damaged" in complaint


def test_every_bit_counts(tmp_path):
    """With the manifest no flipped bit passes, wherever it is."""
    save(tmp_path, 1)
    data = (tmp_path / "last.pt").read_bytes()
    for position in random.Random(0).sample(range(len(data) * 8), 200):
        changed = bytearray(data)
        changed[position // 8] ^= 1 << position % 8
        (tmp_path / "last.pt").write_bytes(changed)
        with pytest.raises(UserError, match="SHA-256"):
            checkpoint.read(tmp_path / "last.pt")


def test_both_damaged(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    for name in ("last.pt", "previous.pt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"last\.pt: is damaged") as caught:
        Checkpoints(tmp_path).load_last()
    assert caught.value.code == Exit.CHECKPOINT


def test_none(tmp_path):
    with pytest.raises(UserError, match="there is no checkpoint in this directory") as caught:
        Checkpoints(tmp_path).load_last()
    assert caught.value.code == Exit.CHECKPOINT


class Bomb:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


def bombs(victim: Path) -> dict[str, bytes]:
    bomb, buffer, archive = Bomb(victim), io.BytesIO(), io.BytesIO()
    torch.save({**state(1), "model": {"weight": bomb}}, buffer)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(bomb, protocol=2))
        file.writestr("archive/version", "3")
    return {"whole": buffer.getvalue(), "bare": pickle.dumps(bomb), "zip": archive.getvalue()}


@pytest.mark.parametrize("kind", ["whole", "bare", "zip"])
def test_a_pickle_bomb_does_not_go_off(kind, tmp_path, command, capsys):
    victim, path = tmp_path / "victim", tmp_path / "run" / "last.pt"
    path.parent.mkdir()
    path.write_bytes(bombs(victim)[kind])
    for arguments in (
        ("eval", f"checkpoint={path}"),
        ("train", f"resume={path.parent}"),
        ("train", f"init_from={path}", f"hydra.run.dir={tmp_path / 'new'}"),
    ):
        assert command(*arguments) == 4
        said = capsys.readouterr().err
        assert str(path) in said
        assert "Traceback" not in said
    assert not victim.exists()


def test_a_compressed_archive_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "last.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(1 << 24))
    with pytest.raises(UserError, match="is not a checkpoint: it is compressed"):
        checkpoint.read(tmp_path / "last.pt")


@pytest.mark.parametrize("seed", range(40))
def test_any_pickle_is_a_sentence(seed, tmp_path):
    """Harmed bytes with checksums that hold: whatever torch raises, it is one kind of error."""
    buffer, archive = io.BytesIO(), io.BytesIO()
    torch.save(state(1), buffer)
    generator = random.Random(seed)
    with zipfile.ZipFile(buffer) as whole, zipfile.ZipFile(archive, "w") as harmed:
        for item in whole.infolist():
            data = bytearray(whole.read(item))
            if item.filename.endswith("data.pkl"):
                for _ in range(generator.randint(1, 20)):
                    data[generator.randrange(len(data))] = generator.randrange(256)
            harmed.writestr(item.filename, data)
    (tmp_path / "last.pt").write_bytes(archive.getvalue())
    with contextlib.suppress(UserError):  # a changed number may still be read
        checkpoint.read(tmp_path / "last.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": checkpoint.FORMAT + 1}, r"is of format 2, this version reads format 1"),
        ({"config": None}, "is not a cnnctl checkpoint"),
        ({"progress": None}, "it has no progress"),
    ],
)
def test_other_formats(change, message, tmp_path):
    given = {**state(1), **change}
    torch.save({k: v for k, v in given.items() if v is not None or k not in change},
               tmp_path / "x.pt")  # fmt: skip
    with pytest.raises(UserError, match=message) as caught:
        checkpoint.read(tmp_path / "x.pt")
    assert caught.value.code == Exit.CHECKPOINT


@pytest.mark.parametrize(
    ("node", "name"),
    [
        *((node, "os.system") for node in ("model", "data", "optimizer", "task", "backbone")),
        ("data", "cnnctl.data.base.os.system"),
        ("model", "cnnctl.models.base.nn.Linear"),
        ("optimizer", "torch.optim.lr_scheduler.os.system"),
        ("optimizer", "torch.optim.optimizer.functools.partial"),
        ("schedule", "cnnctl.engine.run.os.system"),
    ],
)
def test_a_target_that_is_not_ours_is_not_called(node, name, trained, tmp_path, command, capsys):
    given = checkpoint.read(trained / "best.pt")
    victim = tmp_path / "victim"
    given["config"][node] = {"_target_": name, "command": f"touch {victim}"}
    given["config"]["trust"] = ["os", "subprocess"]  # a checkpoint cannot widen what is allowed
    run = tmp_path / "run"
    run.mkdir()
    torch.save(given, run / "last.pt")
    for arguments in (("eval", f"checkpoint={run / 'last.pt'}"), ("train", f"resume={run}")):
        assert command(*arguments) == 4
        said = capsys.readouterr().err
        assert f"{node}._target_: " in said
        assert name in said
        assert "Traceback" not in said
        assert str(run) in said
    assert not victim.exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.inner", {"_target_": "os.system"}, "a configuration cannot name code here"),
        ("outputs", "${oc.env:HOME}", "may not read the environment"),
        ("optimizer.lr", "fast", "optimizer.lr: must be a number"),
        ("trainer.speed", 3, "trainer.speed: unknown key"),
        ("trainer", None, "not one of this version"),
        ("model", {}, "_target_"),
    ],
)
def test_a_configuration_that_is_not_ours(key, value, message, trained, tmp_path, command, capsys):
    given = checkpoint.read(trained / "best.pt")
    section, _, name = key.rpartition(".")
    node = given["config"][section] if section else given["config"]
    if value is None:
        del node[name]
    else:
        node[name] = value
    path = tmp_path / "last.pt"
    torch.save(given, path)
    for arguments in (("eval", f"checkpoint={path}"), ("train", f"resume={path}")):
        assert command(*arguments) == 4
        said = capsys.readouterr().err
        assert message in said
        assert str(path) in said


# Every call by which a save changes the disk, in any of the functions that make it up.
CALLS = ("replace", "fsync", "link", "open")


class Crash(BaseException):
    pass


@contextlib.contextmanager
def crashing(at: int, *, after: bool):
    """Let the ``at``-th call that changes the disk be the last one (``after``), or not be made."""
    count = 0

    def wrap(original):
        def call(*arguments, **options):
            nonlocal count
            count += 1
            if count == at and not after:
                raise Crash
            result = original(*arguments, **options)
            if count == at:
                raise Crash
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, wrap(getattr(os, name)))
        patch.setattr(Path, "open", wrap(Path.open))
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)  # the dead tidy nothing
        yield


def crash_once(directory: Path, step: int, at: int, *, after: bool, **how: bool) -> bool:
    """Save ``step`` and crash; whether the save was over before that."""
    checkpoints = Checkpoints(directory)
    with crashing(at, after=after):
        try:
            checkpoints.save(state(step), metric=0.5, best=how["best"], keep=how["keep"])
        except Crash:
            return False
    return True


@pytest.mark.parametrize("how", [{"best": False, "keep": False}, {"best": True, "keep": True}])
@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_any_call_leaves_the_old_or_the_new(how, after, tmp_path):
    for at in range(1, 100):
        directory = tmp_path / str(at)
        directory.mkdir()
        for step in (1, 2, 3):
            save(directory, step, best=step == 2)
        done = crash_once(directory, 4, at, after=after, **how)
        found, _, complaint = Checkpoints(directory, clean=False).load_last()
        assert step_of(found) in (3, 4), at
        assert complaint is None, "a crash damages nothing, so nothing is said to be"
        assert step_of(checkpoint.read(directory / "best.pt")) in (2, 4)
        # The resumed run saves again, and all is well.
        save(directory, 5)
        assert step_of(Checkpoints(directory).load_last()[0]) == 5
        assert step_of(checkpoint.read(directory / "previous.pt")) == step_of(found)
        assert not list(directory.glob(".*"))
        if done:
            assert at > 8, "the save made fewer calls than it must"
            return
    pytest.fail("the save never ended")


def test_crash_after_crash_after_crash(tmp_path):
    """Each resumed run may die in its first save: there is still always a whole checkpoint."""
    generator = random.Random(0)
    save(tmp_path, 1, best=True)
    save(tmp_path, 2)
    reached = 2
    for step in range(3, 150):
        how = {"best": generator.random() < 0.3, "keep": generator.random() < 0.1}
        crash_once(tmp_path, step, generator.randint(1, 14), after=generator.random() < 0.5, **how)
        found, _, complaint = Checkpoints(tmp_path, clean=False).load_last()
        assert complaint is None
        assert step_of(found) >= reached
        reached = step_of(found)
        step_of(checkpoint.read(tmp_path / "best.pt"))  # is whole and known to the manifest
    assert reached > 20


def test_the_manifest_names_what_is_there(tmp_path):
    """Over fifty saves of any kind: exactly the files, each with its digest, step and size."""
    generator, kept, best = random.Random(1), set(), 0
    checkpoints = Checkpoints(tmp_path)
    for step in range(1, 51):
        is_best, keep = generator.random() < 0.3, generator.random() < 0.2
        if generator.random() < 0.1:
            checkpoints = Checkpoints(tmp_path)  # resumed
        checkpoints.save(state(step), metric=step / 100, best=is_best, keep=keep)
        kept |= {step} if keep else set()
        best = step if is_best else best
        steps = {"last.pt": step, "previous.pt": step - 1, "best.pt": best}
        steps |= {f"step-{number}.pt": number for number in kept}
        manifest = checkpoint.read_manifest(tmp_path)
        named = {name: key for key, entry in manifest.items() for name in entry["names"]}
        assert {name: number for name, number in steps.items() if number} == {
            name: manifest[key]["step"] for name, key in named.items()
        }
        for name, key in named.items():
            assert digest(tmp_path / name) == key
            assert manifest[key]["bytes"] == (tmp_path / name).stat().st_size
            assert manifest[key]["metric"] == manifest[key]["step"] / 100
        files = {path.name for path in tmp_path.iterdir()}
        assert files == {*named, "manifest.json"}
        # The previous.pt and the best.pt that this save has replaced, until the next one.
        assert sum(not entry["names"] for entry in manifest.values()) <= 2


def test_the_same_state_twice(tmp_path):
    save(tmp_path, 1, best=True)
    save(tmp_path, 1)
    save(tmp_path, 1)
    for name in ("last.pt", "previous.pt", "best.pt"):
        assert step_of(checkpoint.read(tmp_path / name)) == 1


@pytest.mark.parametrize("at", range(1, 12))
def test_a_full_disk_keeps_the_last_good_one(at, tmp_path, monkeypatch):
    save(tmp_path, 1, best=True)
    save(tmp_path, 2)
    checkpoints, calls = Checkpoints(tmp_path), 0

    def full(original):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls >= at:
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(*arguments, **options)

        return call

    said: UserError | None = None
    with monkeypatch.context() as patch:
        for name in ("fsync", "replace"):
            patch.setattr(os, name, full(getattr(os, name)))
        try:
            checkpoints.save(state(3), metric=None, best=True, keep=False)
        except UserError as error:
            said = error
    if calls < at:
        assert said is None
    else:
        assert said is not None
        assert said.code == Exit.MACHINE
        assert "the disk is full" in str(said)
        assert "free some space" in str(said.advice)
    found, _, complaint = Checkpoints(tmp_path).load_last()
    assert step_of(found) in (2, 3)
    assert complaint is None
    assert step_of(checkpoint.read(tmp_path / "best.pt")) in (1, 3)
    assert not list(tmp_path.glob(".*")), "the space is given back"
    save(tmp_path, 4)
    assert step_of(Checkpoints(tmp_path).load_last()[0]) == 4


def test_a_file_size_limit(tmp_path):
    """A real refusal by the kernel, in the middle of a write."""
    save(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UserError, match="cannot be written: File too large") as caught:
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.code == Exit.MACHINE
    assert step_of(Checkpoints(tmp_path).load_last()[0]) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "manifest.json"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_disk_that_is_full(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text("old")
    (tmp_path / f".summary.json.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(UserError, match="the disk is full") as caught:
        checkpoint.write_whole(path, bytes(100_000))
    assert caught.value.code == Exit.MACHINE
    assert path.read_text() == "old"


def test_no_links_to_be_had(tmp_path, monkeypatch):
    """On a file system without hard links, best.pt is a copy."""

    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    save(tmp_path, 1, best=True, keep=True)
    save(tmp_path, 2)
    assert step_of(checkpoint.read(tmp_path / "best.pt")) == 1
    assert step_of(checkpoint.read(tmp_path / "step-1.pt")) == 1


def test_stale_files_go_when_the_run_is_resumed(tmp_path):
    save(tmp_path, 1)
    for name in (".last.pt.123.tmp", ".manifest.json.123.tmp", checkpoint.FRESH):
        (tmp_path / name).write_bytes(b"half")
    Checkpoints(tmp_path, clean=False)
    assert (tmp_path / checkpoint.FRESH).exists()
    Checkpoints(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "manifest.json"}


def test_find(tmp_path):
    save(tmp_path, 1)
    assert checkpoint.find(tmp_path) == tmp_path / "last.pt"
    save(tmp_path, 2, best=True)
    assert checkpoint.find(tmp_path) == tmp_path / "best.pt"
    assert checkpoint.find(str(tmp_path / "previous.pt")) == tmp_path / "previous.pt"
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.find(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there is no checkpoint in this directory"):
        checkpoint.find(tmp_path / "empty")


def test_the_manifest_is_json_for_anyone(tmp_path):
    save(tmp_path, 3, best=True)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    ((key, entry),) = manifest["checkpoints"].items()
    assert key == digest(tmp_path / "last.pt")
    assert entry["names"] == ["last.pt", "best.pt"]
