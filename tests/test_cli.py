"""The command line: help, completion, and one sentence for every mistake."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cnnctl import cli
from cnnctl.cli import COMMANDS
from cnnctl.errors import Exit, UserError, nearest


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.main(list(arguments))
    captured = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, captured.out, captured.err


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# (command line, what the first line of stderr must hold, what the advice must hold)
MISTAKES = [
    ("trian", 'no command "trian"', '"train"'),
    ("train --hlep", '"--hlep"', '"--help"'),
    ("data lst", 'no action "lst"', '"list"'),
    ("eval -m", "eval does not sweep", "train does"),
    ("train --cfg hydra", '"job"', ""),
    ("train trainer.epoch=3", "trainer.epoch: unknown key", '"trainer.epochs"'),
    ("train optimizr=adam", "optimizr: unknown key", '"optimizer"'),
    ("train zzz=1", "zzz: unknown key", "choose one of: augmentation, backbone"),
    ("train +model.zzz=1", "model.zzz: unknown key", ""),
    ("train model=resnet81", 'no model "resnet81"', '"resnet18"'),
    ("train optimizer.lr=abc", "optimizer.lr: must be a number", ""),
    ("train optimizer.lr=", "optimizer.lr: must be a number", ""),
    ("train optimizer.lr=nan", "optimizer.lr: must be a finite number", ""),
    ("train optimizer.lr=inf", "optimizer.lr: must be a finite number", ""),
    ("train optimizer.lr=-1", "optimizer", ""),
    ("train trainer.batch_size=0", "batch_size must be between 1", ""),
    ("train trainer.batch_size=-1", "batch_size must be between 1", ""),
    ("train trainer.batch_size=2.5", "trainer.batch_size: must be a whole number", ""),
    ("train trainer.epochs=1e9", "trainer.epochs: must be a whole number", ""),
    ("train trainer.epochs=true", "trainer.epochs: must be a whole number", ""),
    ("train trainer.precision=fp8", "trainer.precision: must be one of auto, fp32", ""),
    ("train trainer.monitor=f1", 'no metric "f1"', "top1"),
    ("train trainer.batch_size=6 trainer.accumulate=4", "does not divide", ""),
    ("train trainer.ema=1.5", "ema must be between 0 and 1", ""),
    ("train trainer.device=gpu", 'no device "gpu"', "cuda"),
    ("train seed=a", "seed: must be a whole number", ""),
    ("train augmentation.size=-1", "size must be at least 1", ""),
    ("train backbone=resnet18", "takes no backbone", "model=classifier"),
    ("train model=classifier backbone=none", "needs a backbone", "backbone=resnet18"),
    ("train +model.num_classes=12", "model.num_classes", "leave it out"),
    ("train model.widths", "model.widths: is not of the form key=value", "--help"),
    ("train model={a", "cannot be read", ""),
    ("train seed=${outputs} outputs=${seed}", "ecursive", ""),
    ("train +a=${oc.env:HOME}", "a: may not read the environment", ""),
    ("train --config-dir nowhere", "nowhere", ""),
    ("train hydra/launcher=submarine", 'no hydra/launcher "submarine"', "basic"),
    ("eval split=tset", 'no split "tset"', "test"),
    ("eval checkpont=x", "checkpont", '"checkpoint"'),
    ("predict", "input: has no value", "input="),
]


@pytest.mark.parametrize(("line", "problem", "advice"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_one_sentence_with_code_2(
    capsys: pytest.CaptureFixture[str], elsewhere: Path, line: str, problem: str, advice: str
) -> None:
    code, _, err = call(capsys, *line.split())
    first, *rest = err.splitlines()
    assert code == Exit.CONFIG
    assert first.startswith("error: ")
    assert problem in first
    assert advice in "\n".join(rest)
    assert "Traceback" not in err
    assert list(elsewhere.iterdir()) == []  # nothing half-written


NAMES_CODE = [
    "model._target_=os.system",
    "model._target_=cnnctl.build.subprocess",
    "model._target_=torchvision.models.resnet18",
    "model._target_=cnnctl.models.lenet.nn.Linear",
    "data._target_=cnnctl.models.lenet.LeNet",
    "optimizer._target_=torch.optim.sgd.torch.load",
    "schedule._target_=os.system",
    "+model.inner._target_=os.system",
    "+model._partial_=true",
    "+hydra.callbacks.x._target_=os.system",
    "hydra.job_logging.root=1",
    "hydra.launcher._target_=os.system",
    "hydra.searchpath=[pkg://os]",
]


@pytest.mark.parametrize("override", NAMES_CODE)
def test_a_configuration_cannot_name_code(
    capsys: pytest.CaptureFixture[str], elsewhere: Path, override: str
) -> None:
    code, _, err = call(capsys, "train", override)
    assert code == Exit.CONFIG
    assert err.startswith("error: ")
    assert list(elsewhere.iterdir()) == []


def test_trust_is_the_command_lines_alone(
    capsys: pytest.CaptureFixture[str], elsewhere: Path
) -> None:
    (elsewhere / "conf" / "experiment").mkdir(parents=True)
    recipe = elsewhere / "conf" / "experiment" / "sly.yaml"
    recipe.write_text("# @package _global_\n# Sly\ntrust: [os]\nmodel:\n  _target_: os.system\n")
    code, _, err = call(capsys, "train", "--config-dir", "conf", "experiment=sly")
    assert code == Exit.CONFIG
    assert err.splitlines()[0] == "error: trust: only the command line can set it"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"# x\na: 1\na: 2\n", "duplicate key"),
        (b"# x\na:\n\t- 1\n", "not valid YAML"),
        (b"# x\na: \xff\xfe\n", "UTF-8"),
        (b"# x\na: !!python/object/apply:os.system [id]\n", "not valid YAML"),
    ],
)
def test_a_broken_yaml_file_is_named(
    capsys: pytest.CaptureFixture[str], elsewhere: Path, text: bytes, problem: str
) -> None:
    (elsewhere / "conf" / "model").mkdir(parents=True)
    (elsewhere / "conf" / "model" / "broken.yaml").write_bytes(text)
    code, _, err = call(capsys, "train", "--config-dir", "conf", "model=broken")
    assert code == Exit.CONFIG
    assert problem in err
    assert "Traceback" not in err


def test_a_model_of_ones_own_needs_trust(
    capsys: pytest.CaptureFixture[str], elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (elsewhere / "conf" / "model").mkdir(parents=True)
    (elsewhere / "conf" / "model" / "own.yaml").write_text(
        "# @package _global_\n# Mine\nmodel:\n  _target_: my_own_models.Flat\n  scale: 2.0\n"
    )
    (elsewhere / "my_own_models.py").write_text(
        "from torch import nn\n"
        "from cnnctl.models.base import ClassificationModel\n"
        "class Flat(ClassificationModel):\n"
        "    def __init__(self, in_channels: int, num_classes: int, scale: float = 1.0):\n"
        "        super().__init__()\n"
        "        self.linear = nn.Linear(in_channels, num_classes)\n"
        "        self.scale = scale\n"
        "    def forward(self, pixels):\n"
        "        return self.linear(self.scale * pixels.mean((2, 3)))\n"
    )
    line = ["train", "--config-dir", "conf", "model=own", "debug=fast", "trainer.test=false"]
    assert call(capsys, *line)[0] == Exit.CONFIG
    code, out, _ = call(capsys, *line, "trust=[my_own_models]")
    assert code == Exit.DONE
    assert "model      own, 20 parameters" in out


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--help")
    assert code == Exit.DONE
    assert all(f"  {name}" in out for name in COMMANDS)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_a_page(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, _ = call(capsys, command, "--help")
    assert code == Exit.DONE
    assert out.startswith(f"cnnctl {command}: ")
    assert "keys:" in out


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("cnnctl tr", ["train"]),
        ("cnnctl train model=resnet3", ["model=resnet32", "model=resnet34"]),
        ("cnnctl train optimizer.l", ["optimizer.lr="]),
        ("cnnctl data ch", ["check"]),
        ("cnnctl eval sp", ["split="]),
        ("cnnctl bench p", ["peers", "parts="]),
        ("cnnctl bench model=resnet3", ["model=resnet32", "model=resnet34"]),
    ],
)
def test_completion_offers(typed: str, offered: list[str]) -> None:
    environment = {**os.environ, "COMP_LINE": typed, "COMP_POINT": str(len(typed))}
    command = [sys.executable, "-m", "cnnctl", "-sc", "query=bash"]
    answer = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert [word for word in answer.stdout.split() if word in offered] == offered


def test_cfg_prints_what_a_line_comes_to(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "train", "--cfg", "job", "optimizer=adam", "optimizer.lr=0.5")
    assert code == Exit.DONE
    assert "_target_: torch.optim.Adam\n  lr: 0.5" in out


def test_a_fault_of_ours_keeps_its_traceback(
    capsys: pytest.CaptureFixture[str], elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(arguments: list[str]) -> int:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr(cli, "_main", broken)
    monkeypatch.delenv("CNNCTL_RUN", raising=False)
    code, _, err = call(capsys, "train")
    assert code == Exit.BUG
    assert "ZeroDivisionError: a fault" in err
    assert "Traceback" not in err
    assert "in broken" in (elsewhere / "cnnctl-crash.txt").read_text()


def test_a_closed_pipe_is_not_an_error() -> None:
    started = time.monotonic()
    command = f"{sys.executable} -m cnnctl train --help | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.startswith("cnnctl train: ")
    assert time.monotonic() - started < 60


def test_nearest_offers_one_or_lists_all() -> None:
    assert nearest("lenett", ["lenet", "mlp"]) == 'did you mean "lenet"?'
    assert nearest("qqq", ["mlp", "lenet"]) == "choose one of: lenet, mlp"


def test_user_error_reads_file_record_field_and_survives_pickling() -> None:
    import pickle

    error = UserError(
        "is bad", file="a.json", record="row 3", field="x", advice="fix", code=Exit.DATA
    )
    assert str(error) == "a.json: row 3: x: is bad"
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.advice, again.code) == (str(error), "fix", Exit.DATA)
    assert json.dumps(int(error.code)) == "3"
