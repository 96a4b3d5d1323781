"""Tab completion for bash and zsh through Hydra's own script and its own query.

Hydra completes ``app key=``; here a command stands between, and is taken out of the line first.
"""

from __future__ import annotations

import os
import sys

from cnnctl.cli import ACTIONS, BESIDE, COMMANDS, PRIMARY
from cnnctl.errors import Exit


def run(arguments: list[str]) -> int:
    """``install=bash``, ``uninstall=bash`` or ``query=bash`` (as the installed script asks)."""
    line = os.environ.get("COMP_LINE", "")
    primary = "train"
    if arguments[:1] == ["query=bash"]:
        words = line.split(" ")
        typed = words[1] if len(words) > 1 else ""
        if len(words) <= 2:
            print("\n".join(name for name in COMMANDS if name.startswith(typed)))
            return Exit.DONE
        if typed not in COMMANDS:
            return Exit.CONFIG
        primary = PRIMARY[typed]
        last = words[-1]
        if "=" not in last:
            action = next((word for word in words[2:-1] if word in ACTIONS.get(typed, ())), None)
            offered = [*ACTIONS.get(typed, ()), *_own_keys(typed, action)]
            print("\n".join(word for word in offered if word.startswith(last)))
            if action is not None:
                words.remove(action)
        del words[1]
        os.environ["COMP_LINE"] = " ".join(words)
    _hydra(primary, arguments)
    return Exit.DONE


def _own_keys(command: str, action: str | None) -> list[str]:
    """Those that the command has beside the keys that Hydra offers."""
    from cnnctl.compose import compose

    beside = BESIDE.get((command, action))
    return [f"{key}=" for key in compose(beside, []) if key != "hydra"] if beside else []


def _hydra(primary: str, arguments: list[str]) -> None:
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path

    from cnnctl.compose import conf_dir

    sys.argv[0] = "cnnctl"
    path = create_config_search_path(str(conf_dir().absolute()))
    hydra = Hydra.create_main_hydra2(task_name="cnnctl", config_search_path=path)
    hydra.shell_completion(config_name=primary, overrides=arguments)
