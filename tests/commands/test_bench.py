"""``cnnctl bench``: every part of every variant has a row, figures follow from each other, the
process is left as it was, and each mistake is one sentence."""

from __future__ import annotations

import json

import pytest
import torch

from cnnctl import compose
from cnnctl.commands import bench, bench_start, bench_table
from cnnctl.commands.bench_table import Row, labels, lines, profile_lines
from cnnctl.engine import operator_times, processor
from cnnctl.engine.operator_times import kind
from cnnctl.engine.stopwatch import Times
from cnnctl.errors import UserError

CPU = torch.device("cpu")
QUICK = ("model=mlp", "model.widths=[16]", "turns=2", "trainer.threads=1", "trainer.precision=fp32")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(bench, "peak_flops", lambda device, dtype: 1e12)
    return tmp_path


@pytest.fixture
def said(command, capsys):
    def run(*words):
        code = command("bench", *words)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_every_part_of_every_variant_has_a_row(said, elsewhere):
    variants = (
        "variants=[trainer.precision=bf16, trainer.batch_size=32 trainer.channels_last=false]"
    )
    code, out, _ = said(*QUICK, variants, "json=figures.json", "trainer.ema=0.9")
    assert code == 0
    figures = json.loads((elsewhere / "figures.json").read_text())
    names = ["base", "trainer.precision=bf16", "trainer.batch_size=32 trainer.channels_last=false"]
    rows = figures["rows"]
    assert [(row["part"], row["variant"]) for row in rows] == [
        (part, name) for part in ("load", "step", "evaluate") for name in names
    ]
    for row in rows:
        (base,) = (r for r in rows if (r["part"], r["variant"]) == (row["part"], "base"))
        assert row["turns"] == 2
        rate = row["images_per_second"]
        assert rate == pytest.approx(1000 * row["images"] / row["median_ms"])
        assert row["speed"] == pytest.approx(rate / base["images_per_second"])
        low, high = row["quartiles_ms"]
        assert low <= row["median_ms"] <= high
        if row["flops"]:
            assert row["flops_per_second"] == pytest.approx(1000 * row["flops"] / row["median_ms"])
            assert row["of_peak"] == pytest.approx(row["flops_per_second"] / 1e12)
    # Two dense layers, 64 -> 16 -> 10: forward, the gradients of the weights, those of the inputs
    # (the pixels need none). A multiply-add is two.
    forward, backward = 64 * 16 + 16 * 10, 64 * 16 + 2 * 16 * 10
    by_part = {(row["part"], row["variant"]): row for row in rows}
    for name, batch in zip(names, (64, 64, 32), strict=True):
        assert by_part["step", name]["flops"] == 2 * batch * (forward + backward)
        assert by_part["load", name]["images"] == by_part["step", name]["images"] == batch
        assert by_part["load", name]["flops"] == 0
        evaluated = by_part["evaluate", name]
        assert evaluated["flops"] == 2 * evaluated["images"] * forward
    variants = figures["variants"]
    assert [v["precision"] for v in variants] == ["fp32", "bf16", "fp32"]
    assert [v["channels_last"] for v in variants] == [True, True, False]
    assert [v["batch_size"] for v in variants] == [64, 64, 32]
    assert variants[1]["words"][-1] == "trainer.precision=bf16"
    assert "trainer.precision=fp32" not in variants[1]["words"]
    for shares in figures["profile"].values():
        assert sum(shares.values()) == pytest.approx(1)
        assert shares["matrix product"] > 0
    legend = [line[line.index("cpu, ") :] for line in out.splitlines() if ", batches of " in line]
    assert legend == [
        "cpu, 1 threads, fp32, channels_last, batches of 64",
        "cpu, 1 threads, bf16, channels_last, batches of 64",
        "cpu, 1 threads, fp32, batches of 32",
    ]
    assert [path.name for path in elsewhere.iterdir()] == ["figures.json"]  # no run is left


@pytest.mark.parametrize(
    "words",
    [
        ("model=whitened_convnet",),
        pytest.param(("task=segment",), marks=pytest.mark.slow),
        pytest.param(("task=detect",), marks=pytest.mark.slow),
        pytest.param(("task=instance",), marks=pytest.mark.slow),
        pytest.param(("task=pose",), marks=pytest.mark.slow),
        pytest.param(("task=detect", "model=fast_rcnn"), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_other_tasks_and_stages(said, words):
    small = ("turns=1", "trainer.batch_size=2", "trainer.eval_batch_size=2", "profile=false")
    code, out, err = said(*words, *small)
    assert (code, err) == (0, "")
    printed = [line for line in out.splitlines() if line in bench.PARTS]
    assert printed == ["load", "step", "evaluate"]


def test_images_that_are_read_one_by_one_are_loaded_by_one_core(said, picture_folder):
    words = (f"data.root={picture_folder}", "augmentation.size=16", "trainer.batch_size=8")
    code, out, err = said("data=folder", "model=mlp", *words, "parts=[load]", "turns=3")
    assert (code, err) == (0, "")
    assert "load: by one core; a run has trainer.workers processes" in out
    assert "where a training step goes" not in out


def test_the_peak_is_the_best_that_was_seen(said, monkeypatch, elsewhere):
    seen = iter((3e9, 5e9, 4e9, 1e9))  # of both precisions, before and after
    monkeypatch.setattr(bench, "peak_flops", lambda device, dtype: next(seen))
    variants = "variants=[trainer.precision=bf16]"
    code, out, _ = said(*QUICK, "parts=[step]", "profile=false", variants, "json=a.json")
    assert code == 0
    assert "  4 GFLOP/s in fp32, 5 GFLOP/s in bf16 (measured)" in out
    rows = json.loads((elsewhere / "a.json").read_text())["rows"]
    for row, peak in zip(rows, (4e9, 5e9), strict=True):
        assert row["of_peak"] == pytest.approx(row["flops_per_second"] / peak)


def test_threads_are_those_of_the_turn_and_put_back(said, monkeypatch):
    seen = []
    original = bench.stepping

    def stepping(subject):
        work = original(subject)
        run = work.run
        work.run = lambda: (seen.append((subject.threads, torch.get_num_threads())), run())
        return work

    monkeypatch.setitem(bench._WORKS, "step", stepping)
    monkeypatch.setattr("cnnctl.engine.machine.cores", lambda: 2)
    monkeypatch.setattr("cnnctl.engine.trainer.cores", lambda: 2)
    before = torch.get_num_threads()
    words = ("parts=[step]", "profile=false", "variants=[trainer.threads=2]")
    code, out, _ = said(*QUICK, *words)
    assert code == 0
    assert "base       cpu, 1 threads, fp32" in out
    assert "threads=2  cpu, 2 threads, fp32" in out
    assert {threads for threads, _ in seen} == {1, 2}
    assert all(wanted == there for wanted, there in seen)
    assert torch.get_num_threads() == before
    assert not torch.are_deterministic_algorithms_enabled()


# (words, what the first line of stderr must hold, what the advice must hold)
MISTAKES = [
    ("parts=[lod]", 'parts: there is no "lod"', '"load"'),
    ("parts=[]", "parts: is empty", "load, step"),
    ("parts=[load,load]", 'parts: has "load" twice', ""),
    ("turns=0", "turns: must be at least 1, not 0", ""),
    ("turns=x", "turns: must be a whole number", ""),
    ("budget=0", "budget: must be positive", ""),
    ("json=none/here.json", "json: there is no folder", "json=figures.json"),
    ("json=.", 'json: "." is a folder', "json=figures.json"),
    ("json='~nobody_here/a.json'", 'json: there is no home for "~nobody_here/a.json"', ""),
    ("variants=['']", "variants: has one that changes nothing", "precision"),
    ("variants=[seed=1,seed=1]", 'variants: has "seed=1" twice', ""),
    ("variants=[zzz=1]", 'variant "zzz=1": zzz: unknown key', "trainer"),
    ("variants=[trainer.precision=fp8]", 'fp8": trainer.precision: must be one of', ""),
    ("variants=[trainer.precision=fp16]", 'fp16": trainer.precision: fp16 is for GPUs', "bf16"),
    ("variants=[trainer.threads=999]", 'variant "trainer.threads=999": trainer', "cores"),
    ("variants=[~data]", 'variant "~data": data: is left out, and nothing runs', "data=..."),
    ("variants=[task=detect]", "does task=detect, and the configuration task=classify", "itself"),
    ("variants=[data.only=[1,2]]", "its data has 2 classes, and the configuration's 10", "itself"),
    ("model=nearest_neighbour", "nearest_neighbour is fitted at once", "parts=[load]"),
    ("trainer.devices=2", "trainer.devices: is 2, and bench times one process", "devices=1"),
    ("resume=here", "resume: bench continues no run", ""),
    ("trainer.batch_size=5000", "a batch of 5000 is larger than the training data", "1078"),
    ("zzz=1", "zzz: unknown key", "turns"),
    ("prs", 'bench has no action "prs"', '"peers"'),
]


@pytest.mark.parametrize(("words", "problem", "advice"), MISTAKES)
def test_a_mistake_is_one_sentence(said, words, problem, advice):
    code, out, err = said(words)
    assert code in (2, 5)
    assert out == ""
    first = err.splitlines()[0]
    assert problem in first
    assert advice in err


def test_what_the_machine_cannot_do_names_the_variant(said, monkeypatch):
    def stepping(subject):
        work = bench.loading(subject)
        if subject.name != "base":
            work.run = lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("no memory"))
        return work

    monkeypatch.setitem(bench._WORKS, "step", stepping)
    code, _, err = said(*QUICK, "parts=[step]", "variants=[trainer.batch_size=128]")
    assert code == 5
    assert err.startswith('error: variant "trainer.batch_size=128": out of memory in training with')
    assert "128 images" in err


def test_asked_to_stop_it_shows_what_there_is(said, monkeypatch):
    def evaluating(subject):
        stops[0].signum = 2  # as Ctrl-C does, after load and step
        return bench.loading(subject)

    stops = []
    install = bench.StopFlag.install
    monkeypatch.setattr(bench.StopFlag, "install", lambda flag: (stops.append(flag), install(flag)))
    monkeypatch.setitem(bench._WORKS, "evaluate", evaluating)
    code, out, _ = said(*QUICK, "profile=false")
    assert code == 130
    printed = out.splitlines()
    assert "stopped" in printed
    assert {"load", "step"} <= set(printed)
    assert "evaluate" not in printed


def test_what_was_timed_before_a_fault_is_shown(said, monkeypatch, elsewhere):
    def evaluating(subject):
        work = bench.loading(subject)
        work.run = lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("no memory"))
        return work

    monkeypatch.setitem(bench._WORKS, "evaluate", evaluating)
    code, out, err = said(*QUICK, "profile=false", "json='~/a.json'")
    assert code == 5
    assert err.startswith("error: out of memory")
    assert {"load", "step"} <= set(out.splitlines())
    rows = json.loads((elsewhere / "a.json").read_text())["rows"]
    assert [row["part"] for row in rows] == ["load", "step"]


def test_a_child_that_the_same_ctrl_c_ended_is_no_fault(said, monkeypatch, elsewhere):
    def run(program, arguments, code):
        calls.append(arguments[0])
        if len(calls) == 6:
            stops[0].signum = 2
            raise UserError("cnnctl train ended with -2 in a process of its own")

    calls, stops = [], []
    install = bench.StopFlag.install
    monkeypatch.setattr(bench.StopFlag, "install", lambda flag: (stops.append(flag), install(flag)))
    monkeypatch.setattr(bench_start, "_run", run)
    words = ("parts=[load,start]", "profile=false", "json=a.json")
    code, out, err = said(*QUICK, *words)
    assert (code, err) == (130, "")
    assert "stopped" in out.splitlines()
    rows = json.loads((elsewhere / "a.json").read_text())["rows"]
    turns = {row["part"]: row["turns"] for row in rows}
    assert sum(turns.pop(part) for part in list(turns) if part != "load") == 5  # not the cut one
    assert turns == {"load": 2}


def test_start_is_timed_in_processes(said, monkeypatch, elsewhere):
    calls = []

    def run(program, arguments, code):
        calls.append((arguments[:3], int(code)))

    monkeypatch.setattr(bench_start, "_run", run)
    words = ("parts=[start]", "variants=[seed=7]", "json=a.json", "outputs=mine")
    assert said(*QUICK, *words)[0] == 0
    rows = json.loads((elsewhere / "a.json").read_text())["rows"]
    assert [(row["part"], row["variant"]) for row in rows] == [
        (bench_start.HELP, "base"),
        (bench_start.MISTAKE, "base"),
        (bench_start.FIRST_STEP, "base"),
        (bench_start.FIRST_STEP, "seed=7"),
    ]
    assert len(calls) == 2 * 4
    assert calls[0] == (["--help"], 0)
    assert calls[1] == (["train", "trainer.epoch=3"], 2)


@pytest.mark.slow
def test_a_first_step_is_made_and_nothing_is_left(elsewhere):
    bench_start.first_step([*QUICK[:2], *QUICK[3:]], None)
    bench_start.answering()[bench_start.MISTAKE]()
    assert list(elsewhere.iterdir()) == []


def row(part="step", variant="base", **given):
    usual = {
        "times": Times((0.01, 0.02, 0.03)),
        "images": 64,
        "flops": 10**9,
        "peak": 1e11,
        "memory": 3 * 10**6,
        "ratio": 1.0,
    }
    return Row(part, variant, **{**usual, **given})


def test_the_table_by_hand():
    rows = [row(), row(variant="seed=1", ratio=0.5, flops=0), row("start", images=0, memory=None)]
    assert lines(rows, {"base": "base", "seed=1": "seed=1"}) == [
        "            ms  spread  images/s  FLOP/s  of peak  memory  speed",
        "step",
        "  base    20.0   ±25 %     3,200    50 G     50 %    3 MB  1.00x",
        "  seed=1  20.0   ±25 %     3,200                     3 MB  0.50x",
        "start",
        "  base    20.0   ±25 %              50 G     50 %          1.00x",
    ]


def test_a_column_that_is_empty_is_left_out():
    rows = [row(bench_start.HELP, images=0, flops=None, memory=None)]
    assert lines(rows, {"base": "base"}) == [
        "          ms  spread  speed",
        "start: --help",
        "  base  20.0   ±25 %  1.00x",
    ]


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_the_terminal(width):
    long = "trainer.precision=fp32 trainer.channels_last=false trainer.compile=true"
    rows = [row(variant=name, times=Times((1.2345, 1.5))) for name in ("base", long)]
    called = labels(["base", long], bench_table.room(rows, width))
    assert called["base"] == "base"
    assert all(len(line) <= width for line in lines(rows, called))
    profiles = {name: {"convolution": 0.75, "other": 0.25} for name in called}
    assert all(len(line) <= width for line in profile_lines(profiles, called, width))


def test_names_are_told_apart():
    assert labels(["base", "trainer.seed=1"], 20) == {"base": "base", "trainer.seed=1": "seed=1"}
    assert labels(["base", "trainer.x=1", "x=1"], 20)["trainer.x=1"] == "trainer.x=1"
    assert labels(["base", "a" * 30, "b" * 9], 20) == {
        "base": "base",
        "a" * 30: "variant 1",
        "b" * 9: "variant 2",
    }


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["aten::mkldnn_convolution", "aten::conv2d"], "convolution"),
        (["aten::convolution_backward", "ConvolutionBackward0"], "convolution"),
        (["aten::copy_", "aten::_to_copy", "aten::to", "aten::conv2d"], "copies, layout"),
        (["aten::native_batch_norm", "aten::batch_norm"], "normalisation"),
        (["aten::sum", "NativeBatchNormBackward0"], "normalisation"),
        (["aten::threshold_backward", "ReluBackward0"], "activation, elementwise"),
        (["aten::add_"], "activation, elementwise"),
        (["aten::addmm", "aten::linear"], "matrix product"),
        (["aten::mm", "AddmmBackward0"], "matrix product"),
        (["aten::max_pool2d_with_indices"], "pooling"),
        (["aten::add_", "Optimizer.step#SGD.step"], "optimizer"),
        (["Torch-Compiled Region: 0/0"], "compiled"),
        (["aten::nonzero"], "other"),
    ],
)
def test_kinds_of_operators(names, expected):
    assert kind(names) == expected


def test_time_goes_where_the_work_is():
    left, right = torch.rand(400, 400), torch.rand(400, 400)
    found = operator_times.shares(lambda: [left @ right for _ in range(20)], CPU)
    assert found["matrix product"] > 0.9
    assert sum(found.values()) == pytest.approx(1)


def test_memory_is_what_was_held_at_once():
    held = processor.held_for(lambda: [torch.ones(2**22) for _ in range(4)], CPU)
    assert held is None or 60 * 2**20 < held < 90 * 2**20  # 4 times 16 MiB


def test_tensors_are_counted_once():
    one = torch.zeros(10)
    assert processor.size_of([one, one, torch.zeros(3, dtype=torch.int64), "no"]) == 40 + 24


@pytest.mark.parametrize(
    ("text", "listed"),
    [
        ("variants=[a.b=1, c=2 d=3]", ["a.b=1", "c=2 d=3"]),
        ("variants=a.b=1", ["a.b=1"]),
        ("variants=[m.w=[1,2] x=1,m.w=[3,4]]", ["m.w=[1,2] x=1", "m.w=[3,4]"]),
        ("variants=['a=1', \"b=2\"]", ["a=1", "b=2"]),
        ("variants=[name='it, is']", ["name='it, is'"]),
        ("variants=[]", []),
    ],
)
def test_variants_as_they_are_typed(text, listed):
    quoted = compose.quoted_list("variants", text)
    assert list(compose.compose("bench", [quoted]).variants) == listed
    assert compose.quoted_list("variants", "turns=3") == "turns=3"
