"""The README's table of options is what conf/ holds; its commands compose."""

import re
import shlex
from pathlib import Path

import pytest

from cnnctl import build, cli, compose
from cnnctl.help import explanation

README = Path(__file__).parent.parent / "README.md"


def options_table() -> str:
    lines = ["| group | options |", "|---|---|"]
    for group, options in compose.groups().items():
        lines.append(f"| `{group}` | {', '.join(f'`{option}`' for option in options)} |")
    return "\n".join(lines)


def test_the_table_of_options_lists_exactly_what_conf_holds() -> None:
    text = README.read_text()
    found = re.search(r"<!-- options.*?-->\n(.*?)\n<!-- end of options -->", text, re.S)
    assert found is not None
    assert found[1] == options_table(), f"paste this:\n{options_table()}"


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README.read_text(), re.S)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith(("cnnctl train", "cnnctl info"))]


@pytest.mark.parametrize("line", commands())
def test_every_training_command_composes(line: str) -> None:
    call = cli.parse(shlex.split(line)[1:])
    if call.config_dir is not None:
        pytest.skip("needs the reader's own files; tests/test_cli.py has such a model")
    overrides = [text for text in call.overrides if not text.startswith("resume=")]
    if call.sweep:
        overrides = [text.split(",")[0] for text in overrides]
    if (beside := cli.BESIDE.get((call.command, call.action))) is not None:
        groups = tuple(map(str, compose.compose("train", [])))
        overrides = compose.split_own(beside, overrides, known=groups)[1]
    config = compose.compose("train", overrides)
    settings, chosen = compose.settings(config), compose.choices(config)
    assert build.task(settings).name == chosen["task"]
    build.check(settings, chosen)


def test_every_option_explains_itself() -> None:
    files = sorted(compose.conf_dir().rglob("*.yaml"))
    assert len(files) > 30
    silent = [path.name for path in files if not explanation(path)]
    assert silent == []
