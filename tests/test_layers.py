"""Imports point one way, and what is asked for first is answered without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cnnctl

PACKAGE = Path(cnnctl.__file__).parent

# Part -> the parts that it may import; the package's own modules by their first name, but for the
# two modules of a folder that others see through.
BASE = {"errors", "structures", "randomness", "skeleton", "user_cache"}
MAY_IMPORT = {
    "errors": set(),
    "randomness": set(),
    "structures": set(),
    "skeleton": set(),
    "user_cache": set(),
    "help": set(),
    "ops": BASE,
    "metrics": BASE | {"ops"},
    "data": BASE | {"ops"},
    "backbones": BASE | {"ops"},
    "models.base": BASE | {"ops"},
    "models": BASE | {"ops", "backbones", "models.base"},
    "drawing.pictures": BASE | {"data", "metrics", "models.base"},
    # What draws for a task; these may use each other, and no two of them in a circle (below).
    "drawing": BASE | {"data", "drawing.pictures", "metrics", "models", "models.base", "ops"},
    "tasks": BASE
    | {"data", "drawing", "drawing.pictures", "metrics", "models", "models.base", "ops"},
    "engine": BASE | {"data", "models.base"},
    "compose": {"errors", "binding"},
    "binding": {"errors"},
    "completion": {"errors", "compose", "cli"},
    "build": BASE | {"binding", "data", "engine", "models", "models.base", "backbones", "tasks"},
    # What cnnctl is compared with, and how: whole runs of both.
    "peers": BASE | {"build", "compose", "data", "engine", "models", "models.base", "ops"},
    "commands": BASE
    | {"binding", "build", "compose", "data", "drawing", "drawing.pictures", "engine", "help"}
    | {"metrics", "models", "models.base", "ops", "outcome", "peers", "tasks"},
    "outcome": {"errors"},
    "cli": {"errors", "compose", "commands", "completion", "help", "outcome"},
    "__main__": {"cli"},
}
HYDRA = {"cli", "compose", "completion", "build", "commands"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


def part(module: str) -> str:
    """``cnnctl.models.lenet`` -> ``models``, ``cnnctl.models.base`` -> ``models.base``."""
    name = module.removeprefix("cnnctl.").removeprefix("cnnctl")
    return name if name in MAY_IMPORT else name.partition(".")[0]


def imports(path: Path, *, inside: bool = True) -> Iterator[str]:
    """Dotted names that a module imports; ``inside`` functions too."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if inside else _at_the_top(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: an import says where from"
            assert node.module is not None
            for name in node.names:
                full = f"{node.module}.{name.name}"
                below = PACKAGE.parent / Path(*full.split("."))
                is_module = below.with_suffix(".py").is_file() or below.is_dir()
                yield full if is_module else node.module


def _at_the_top(tree: ast.Module) -> Iterator[ast.AST]:
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield from ast.walk(node)


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_point_one_way(path):
    own = part(dotted(path))
    if path.name == "__init__.py":
        assert path.read_text() == "", "a dotted path in YAML is the path of a file"
        return
    assert own in MAY_IMPORT, f"{own}: say in MAY_IMPORT what it may import"
    for name in imports(path):
        if name.partition(".")[0] == "cnnctl" and part(name) != own:
            assert part(name) in MAY_IMPORT[own], f"{dotted(path)} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_only_the_outer_parts_know_hydra(path):
    known = {name.partition(".")[0] for name in imports(path)} & {"hydra", "omegaconf"}
    assert not known or part(dotted(path)) in HYDRA


@pytest.mark.parametrize("name", ["cli", "help", "errors", "outcome", "compose", "completion"])
def test_no_torch_at_the_top(name):
    tops = {found.partition(".")[0] for found in imports(PACKAGE / f"{name}.py", inside=False)}
    assert "torch" not in tops


@pytest.mark.parametrize(
    ("arguments", "code", "loaded"),
    [
        (["--help"], 0, []),
        (["train", "--help"], 0, []),
        (["train", "trainer.epoch=3"], 2, ["hydra", "omegaconf"]),
        (["trian"], 2, []),
    ],
)
def test_answered_without_torch(arguments, code, loaded, tmp_path):
    program = (
        "import sys\nfrom cnnctl import cli\n"
        f"try: cli.main({arguments!r})\n"
        "except SystemExit as ended: code = ended.code\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'sklearn', 'matplotlib', 'hydra', 'omegaconf'}\n"
        "heavy &= set(sys.modules)\n"
        "print(code, sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stderr.splitlines()[-1] == f"{code} {loaded}"


def test_no_import_is_a_circle():
    """Between modules, at the top of files (those inside functions are late on purpose)."""
    names = {dotted(path) for path in MODULES}
    graph = {dotted(p): {n for n in imports(p, inside=False) if n in names} for p in MODULES}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above, name])
        if name not in done:
            for below in graph[name]:
                visit(below, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_nothing_is_called_by_what_it_is_not():
    for path in MODULES:
        assert path.stem not in ("utils", "helpers", "misc", "common"), path
