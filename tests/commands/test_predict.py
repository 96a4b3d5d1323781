"""``cnnctl predict``: the same figures as eval, any kind of image, and what bad input gets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from cnnctl import build
from cnnctl.commands import eval as evaluation
from cnnctl.commands import predict
from cnnctl.data.digits import Digits
from cnnctl.data.own_images import find_images
from cnnctl.engine import checkpoint
from cnnctl.engine.distributed import Processes
from cnnctl.engine.inference import evaluate
from cnnctl.errors import Exit, UserError
from cnnctl.models.mlp import MLP

Records = list[dict[str, Any]]


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """The first 40 test digits as PNGs, named in their order."""
    folder = tmp_path_factory.mktemp("digits")
    for index, pixels in enumerate(Digits("test").pixels[:40]):
        Image.fromarray(pixels[0].numpy()).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture
def predicted(command, trained, tmp_path):
    """(input, overrides...) -> the exit code and the records written."""

    def run(images: object, *overrides: str) -> tuple[int, Records]:
        output = tmp_path / "out"
        code = command(
            "predict", f"checkpoint={trained}", f"input='{images}'", f"output={output}", *overrides
        )
        lines = (output / "predictions.jsonl").read_text().splitlines()
        return code, [json.loads(line) for line in lines]

    return run


def evaluated_log_probs(run: Path) -> torch.Tensor:
    """(40, 10): what eval computes of the first test digits, in one batch of the same images."""
    state = checkpoint.read(run / "best.pt")
    settings = OmegaConf.create({"trust": []})
    config, _ = evaluation.rebuild(state, run / "best.pt", settings, [])
    data = Digits("test")
    data.pixels, data.labels = data.pixels[:40], data.labels[:40]
    trainer, augmentation = build.trainer(config), build.augmentation(config, data)
    machine = trainer.machine(Processes())
    model = evaluation.load(config, state, data, augmentation.size)
    machine.place(model)
    loader = trainer.load(data, augmentation, machine, Processes(), 0)
    found = []
    evaluate(
        model,
        loader.in_order(40),
        build.task(config).evaluator(data),
        machine,
        Processes(),
        lambda number, batch, predictions: found.append(predictions.log_probs),
    )
    return torch.cat(found)


def test_same_probabilities_as_eval(predicted, digits, trained):
    code, records = predicted(digits, "pictures=false", "top=10")
    assert code == Exit.DONE
    assert [Path(record["file"]).name for record in records] == [f"{i:02}.png" for i in range(40)]
    wanted = evaluated_log_probs(trained).exp()
    for record, row in zip(records, wanted, strict=True):
        found = {entry["class"]: entry["probability"] for entry in record["top"]}
        assert [found[name] for name in "0123456789"] == pytest.approx(row.tolist(), abs=1e-6)
        best = record["top"][0]
        assert (record["class"], record["probability"]) == (best["class"], best["probability"])
        ranked = [entry["probability"] for entry in record["top"]]
        assert ranked == sorted(ranked, reverse=True)
        assert sum(ranked) == pytest.approx(1, abs=1e-5)


def test_any_batch_size_gives_the_same(predicted, digits):
    _, whole = predicted(digits, "pictures=false")
    _, parts = predicted(digits, "pictures=false", "trainer.eval_batch_size=7")
    for one, other in zip(whole, parts, strict=True):
        assert one["file"] == other["file"]
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-6)


def as_kind(grey: np.ndarray, kind: str) -> Image.Image:
    if kind == "16-bit":
        return Image.fromarray(grey.astype(np.uint16) * 257)
    image = Image.fromarray(grey)
    return image.convert("RGB").convert("P") if kind == "P" else image.convert(kind)


@pytest.mark.parametrize("kind", ["L", "RGB", "RGBA", "LA", "P", "16-bit", "EXIF"])
def test_kinds_of_images(kind, predicted, tmp_path):
    grey = Digits("test").pixels[5, 0].numpy()
    grey = grey // 51 * 51  # levels that every palette has
    plain, special = tmp_path / "plain.png", tmp_path / "special.png"
    Image.fromarray(grey).save(plain)
    if kind == "EXIF":
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned clockwise to stand upright
        Image.fromarray(np.rot90(grey)).save(special, exif=exif)
    else:
        as_kind(grey, kind).save(special)
    _, (reference,) = predicted(plain, "pictures=false")
    _, (record,) = predicted(special, "pictures=false")
    assert record["top"] == reference["top"]


def test_an_image_of_another_shape_loses_its_ends(predicted, tmp_path):
    grey = Digits("test").pixels[5, 0].numpy()
    Image.fromarray(grey).save(tmp_path / "plain.png")
    Image.fromarray(np.pad(grey, ((0, 0), (20, 20)))).save(tmp_path / "wide.png")
    _, (reference,) = predicted(tmp_path / "plain.png", "pictures=false")
    _, (record,) = predicted(tmp_path / "wide.png", "pictures=false")
    assert record["top"] == reference["top"]


def test_broken_images_are_named_and_the_others_go_on(predicted, digits, tmp_path, capsys):
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name in ("00.png", "01.png"):
        shutil.copy(digits / name, folder)
    whole = (digits / "02.png").read_bytes()
    (folder / "00-cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").touch()
    (folder / "notes.txt").write_text("not an image, and not named like one")
    code, records = predicted(folder)
    assert code == Exit.DATA
    assert [Path(record["file"]).name for record in records] == ["00.png", "01.png"]
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"left out: {folder}/00-cut.png: ")
    assert lines[1] == f"left out: {folder}/empty.jpg: is empty (0 bytes)"
    assert "2 that could not be read" in out


def test_all_broken(predicted, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    assert predicted(tmp_path / "a.png") == (Exit.DATA, [])


def test_pictures(predicted, digits, tmp_path):
    shutil.copytree(digits, tmp_path / "in" / "deep")
    shutil.copy(digits / "07.png", tmp_path / "in" / "07.png")
    predicted(tmp_path / "in", "pictures=3")
    drawn = sorted((tmp_path / "out" / "pictures").rglob("*.png"))
    names = [str(path.relative_to(tmp_path / "out" / "pictures")) for path in drawn]
    assert names == ["07.png.png", "deep/00.png.png", "deep/01.png.png"]
    pixels = np.asarray(Image.open(drawn[0]))
    large = np.asarray(Image.open(digits / "07.png")).repeat(32, 0).repeat(32, 1)
    left = (pixels.shape[1] - 256) // 2
    assert (pixels[8:264, left : left + 256] == large[..., None]).all()


def test_own_pictures_are_not_predicted(command, trained, digits, tmp_path):
    for _ in range(2):
        shutil.copytree(digits, tmp_path / "in", dirs_exist_ok=True)
        arguments = (f"input={tmp_path}/in", f"output={tmp_path}/in/said")
        assert command("predict", f"checkpoint={trained}", *arguments) == 0
    lines = (tmp_path / "in" / "said" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 40


def test_top(predicted, digits):
    _, (record,) = predicted(digits / "03.png", "top=2")
    assert len(record["top"]) == 2
    _, (record,) = predicted(digits / "03.png", "top=1000")
    assert len(record["top"]) == 10


def test_the_data_is_not_needed(train, command, picture_folder, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(picture_folder, data)
    run = tmp_path / "run"
    overrides = ("data=folder", f"data.root={data}", "trainer.batch_size=8", "trainer.steps=40")
    size = ("augmentation=none", "augmentation.size=8", "trainer.workers=0", "model=linear")
    assert train(run, *overrides, *size, "optimizer.lr=0.1") == 0
    shutil.rmtree(data)
    command("predict", f"checkpoint={run}", f"input={picture_folder}", "pictures=false")
    lines = (run / "predict" / "predictions.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) == 60
    right = [Path(record["file"]).parent.name == record["class"] for record in records]
    assert sum(right) >= 55  # the colour tells the class


def test_newest_run_and_its_folder(command, trained, digits, tmp_path, monkeypatch, capsys):
    shutil.copytree(trained, tmp_path / "outputs" / "classify" / "mlp" / "one")
    monkeypatch.chdir(tmp_path)
    assert command("predict", f"input={digits}/01.png") == 0
    run = tmp_path / "outputs" / "classify" / "mlp" / "one"
    assert f"checkpoint: {run}/best.pt" in capsys.readouterr().out
    assert (run / "predict" / "predictions.jsonl").is_file()


class TestFindImages:
    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        for name in ("b.PNG", "a.jpg", "c.txt", ".hidden.png", "sub/d[1].webp", "sub/e f.png"):
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path / "in"

    def names(self, wanted: object, folder: Path) -> list[str]:
        found = find_images(wanted, folder / "out")
        return [str(path.relative_to(folder)) for path in found]

    @pytest.mark.parametrize(
        ("wanted", "names"),
        [
            ("", ["a.jpg", "b.PNG", "sub/d[1].webp", "sub/e f.png"]),
            ("*", ["a.jpg", "b.PNG"]),
            ("*.txt", []),
            ("**/*.png", ["sub/e f.png"]),
            ("sub/*", ["sub/d[1].webp", "sub/e f.png"]),
            ("sub/d[1].webp", ["sub/d[1].webp"]),  # a file's name before a glob
            ("c.txt", ["c.txt"]),  # named by the user: whatever its name
            ("?.[jp]*", ["a.jpg"]),
        ],
    )
    def test_found(self, wanted, names, folder):
        if names:
            assert self.names(f"{folder}/{wanted}", folder) == names
        else:
            with pytest.raises(UserError, match="no images found") as caught:
                self.names(f"{folder}/{wanted}", folder)
            assert caught.value.code == Exit.DATA

    def test_list_without_repeats(self, folder):
        wanted = [f"{folder}/b.PNG", f"{folder}/*"]
        assert self.names(wanted, folder) == ["b.PNG", "a.jpg"]

    def test_home_and_relative(self, folder, monkeypatch):
        monkeypatch.setenv("HOME", str(folder))
        monkeypatch.chdir(folder / "sub")
        assert self.names("~/a.jpg", folder) == ["a.jpg"]
        assert self.names("e f.png", folder) == ["sub/e f.png"]

    @pytest.mark.parametrize("wanted", ["absent.png", "a.jpg/b", "x" * 300, 7, []])
    def test_absent(self, wanted, folder, monkeypatch):
        monkeypatch.chdir(folder)
        with pytest.raises(UserError) as caught:
            self.names(wanted, folder)
        assert caught.value.code == Exit.DATA
        assert caught.value.field == "input"


@pytest.mark.parametrize(
    ("override", "code", "sentence"),
    [
        ("input=nowhere", Exit.DATA, "nowhere: input: there is no such file or folder"),
        ("input='*.nothing'", Exit.DATA, "*.nothing: input: no images found"),
        ("top=0", Exit.CONFIG, "top: must be a whole number from 1, not 0"),
        ("top=2.5", Exit.CONFIG, "top: must be a whole number from 1, not 2.5"),
        ("top=true", Exit.CONFIG, "top: must be a whole number from 1, not True"),
        ("pictures=-1", Exit.CONFIG, "pictures: must be true, false or how many, not -1"),
        ("pictures=some", Exit.CONFIG, "pictures: must be true, false or how many, not 'some'"),
        ("output=a_file", Exit.CONFIG, "a_file: output: is a file, not a folder"),
        ("output=a_file/below", Exit.MACHINE, "a_file/below: output: cannot be written"),
        ("checkpoint=a_file", Exit.CHECKPOINT, "a_file: is damaged"),
        ("checkpoint=nowhere", Exit.CHECKPOINT, "nowhere: does not exist"),
        ("pictres=1", Exit.CONFIG, "pictres: unknown key"),
    ],
)
def test_refuses_in_one_sentence(
    override, code, sentence, command, trained, digits, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("a_file").touch()
    given = {"checkpoint": str(trained), "input": str(digits), "output": "out"}
    key, _, value = override.partition("=")
    given[key] = value
    assert command("predict", *(f"{name}={value}" for name, value in given.items())) == code
    out, err = capsys.readouterr()
    assert sentence in err.splitlines()[0]
    assert len(err.splitlines()) <= 2
    assert not list(tmp_path.rglob("predictions.jsonl"))
    assert "Traceback" not in out + err


def test_input_is_required(command, capsys):
    assert command("predict") == Exit.CONFIG
    assert "error: input: has no value" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fault", "code"), [(KeyboardInterrupt(), Exit.INTERRUPTED), (MemoryError(), Exit.MACHINE)]
)
def test_the_file_is_written_whole_or_not_at_all(
    fault, code, predicted, digits, tmp_path, monkeypatch
):
    _, before = predicted(digits / "00.png")
    describe = predict.Predictor._describe
    calls = []

    def failing(self, items):
        calls.append(items)
        if len(calls) == 3:
            raise fault
        return describe(self, items)

    monkeypatch.setattr(predict.Predictor, "_describe", failing)
    after = predicted(digits, "trainer.eval_batch_size=10", "pictures=false")
    assert after == (code, before)
    assert len(calls) == 3
    assert [path.name for path in (tmp_path / "out").iterdir()].count("predictions.jsonl") == 1
    assert not list((tmp_path / "out").glob(".*"))


def test_images_that_do_not_fit_into_memory(
    command, trained, digits, tmp_path, capsys, monkeypatch
):
    def forward(self, pixels):
        raise MemoryError

    monkeypatch.setattr(MLP, "forward", forward)
    given = (f"checkpoint={trained}", f"input={digits}", f"output={tmp_path}")
    assert command("predict", *given, "trainer.eval_batch_size=9") == Exit.MACHINE
    said = capsys.readouterr().err
    assert "out of memory in prediction with 9 images of 8 x 8 at once" in said
    assert "take trainer.eval_batch_size=4" in said


def test_weights_that_are_not_finite(command, trained, digits, tmp_path, capsys):
    state = torch.load(trained / "best.pt")
    for weight in state["model"].values():
        weight.fill_(float("nan"))
    torch.save(state, tmp_path / "diverged.pt")
    arguments = (f"checkpoint={tmp_path}/diverged.pt", f"input={digits}")
    assert command("predict", *arguments) == Exit.CHECKPOINT
    assert "output is not a number" in capsys.readouterr().err
    assert not (tmp_path / "predict" / "predictions.jsonl").exists()
