"""``--help`` from the files themselves: the first comment of every YAML is its explanation."""

from __future__ import annotations

from pathlib import Path

EXAMPLES = {
    "train": [
        "cnnctl train",
        "cnnctl train data=cifar10 model=resnet20 trainer.epochs=20",
        "cnnctl train -m optimizer.lr=0.1,0.01 model=lenet,mlp",
        "cnnctl train resume=outputs/classify/lenet/2026-01-31_12-00-00",
    ],
    "tune": [
        "cnnctl tune 'optimizer.lr=tag(log,interval(1e-3,1))' model=lenet,mlp trials=20",
        "cnnctl tune 'trainer.batch_size=choice(32,64,128)' study=outputs/classify/studies/mine",
    ],
    "eval": [
        "cnnctl eval",
        "cnnctl eval checkpoint=outputs/classify/lenet/2026-01-31_12-00-00 split=val",
        "cnnctl eval model=resnet20 data=cifar10 weights=resnet20.th",
        "cnnctl eval predictions=results.json data=coco data.annotations=instances.json",
        "cnnctl eval proposals=selective_search data=voc split=val",
    ],
    "predict": [
        "cnnctl predict input=photo.jpg",
        "cnnctl predict checkpoint=outputs/classify/lenet/2026-01-31_12-00-00 input=photos/",
        "cnnctl predict input='photos/*.png' pictures=false",
    ],
    "info": [
        "cnnctl info model=resnet20 data=cifar10",
        "cnnctl info task=detect data=voc draw=anchors",
    ],
    "bench": [
        "cnnctl bench model=resnet20 data=cifar10",
        "cnnctl bench model=resnet20 data=cifar10 'variants=[trainer.precision=fp32]'",
        "cnnctl bench task=detect parts=[load,step,evaluate,start] json=detect.json",
        "cnnctl bench peers 'work=[resnet20,faster_rcnn]'",
    ],
    "data": [
        "cnnctl data list",
        "cnnctl data show data=mnist",
        "cnnctl data check data=cifar10",
        "cnnctl data export data=digits format=coco output=scenes",
        "cnnctl data clean dry=true",
    ],
    "proposals": [
        "cnnctl proposals data=voc",
        "cnnctl proposals data=voc proposals=edge_boxes split=val",
    ],
}
BESIDE = {  # -> YAMLs, and what each is of
    "info": [("info", "drawing")],
    "bench": [("bench", "the measurement"), ("peers", "peers, which has no others")],
    "data": [("export", "export"), ("clean", "clean")],
    "proposals": [("recall", "proposals")],
}
NOTES = {
    "predict": [
        "Images are brought to the size of the training images and otherwise left as they are:",
        "a network that learnt white digits on black (digits, mnist) takes ink on paper for",
        "something else. Crop and invert such photos first.",
    ],
}
FLAGS = [
    ("-m, --multirun", "run every combination of values separated by commas (train)"),
    ("--cfg job", "print the composed configuration and stop"),
    ("--config-dir DIR", "a folder of your own YAML files, searched first"),
    ("--traceback", "show where an error came from"),
    ("--help", "this page"),
]


def overview(commands: dict[str, str]) -> str:
    lines = ["cnnctl trains and evaluates convolutional networks.", "", "commands:"]
    lines += _columns(commands.items())
    lines += ["", "examples:", "  cnnctl train", *(f"  {line}" for line in EXAMPLES["train"][1:3])]
    lines += ["  cnnctl eval", "", "cnnctl <command> --help shows its groups and keys."]
    lines += ['Tab completion (bash, zsh): eval "$(cnnctl -sc install=bash)"']
    return "\n".join(lines)


def command(name: str, summary: str, primary: str) -> str:
    conf = _conf_dir()
    lines = [f"cnnctl {name}: {summary}", "", "examples:"]
    lines += [f"  {example}" for example in EXAMPLES[name]]
    lines += ["", *NOTES[name]] if name in NOTES else []
    if primary == "train":
        lines += ["", "groups (choose with group=option):"]
        for folder in sorted(path for path in conf.iterdir() if path.is_dir()):
            lines.append(f"  {folder.name}")
            options = [(path.stem, explanation(path)) for path in sorted(folder.glob("*.yaml"))]
            lines += _columns(options, indent=4)
    lines += ["", "keys:", *_columns(_keys(conf / f"{primary}.yaml"))]
    for stem, title in BESIDE.get(name, ()):
        lines += ["", f"keys of {title}:", *_columns(_keys(conf / f"{stem}.yaml"))]
    if name == "train":
        lines += [
            "",
            "trainer keys:",
            *_columns(_keys(conf / "trainer" / "default.yaml", "trainer.")),
        ]
    lines += ["", "flags:", *_columns(FLAGS)]
    return "\n".join(lines)


def explanation(path: Path) -> str:
    """The first comment line of a YAML file that is not Hydra's package directive."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.startswith("#"):
                break
            if not line.startswith("# @package"):
                return line.lstrip("# ").strip()
    return ""


def _keys(path: Path, prefix: str = "") -> list[tuple[str, str]]:
    """Top-level ``key: value  # comment`` lines."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text, _, comment = line.partition("  # ")
        if text[:1].isalpha() and ": " in text:
            found.append((f"{prefix}{text.replace(': ', '=').strip()}", comment.strip()))
    return found


def _columns(rows, indent: int = 2) -> list[str]:
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    return [f"{'':{indent}}{name:<{width}}  {text}".rstrip() for name, text in rows]


def _conf_dir() -> Path:
    here = Path(__file__).parent  # as compose.conf_dir, which would import OmegaConf
    return next(path for path in (here / "conf", here.parent / "conf") if path.is_dir())
