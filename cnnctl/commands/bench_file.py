"""The file that ``json=`` names: checked before anything is timed, written when all is shown.

Nothing here imports torch: a mistyped name is answered at once.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from cnnctl.errors import UserError

_ADVICE = "name a file in a folder that is there and can be written: json=figures.json"


def check(given: str | None) -> None:
    """
    Raises:
        UserError: no file can be written there.
    """
    if given is None:
        return
    path = _path(given)
    if not path.parent.is_dir():
        problem = f'there is no folder for "{given}"'
    elif path.is_dir():
        problem = f'"{given}" is a folder'
    elif not os.access(path.parent, os.W_OK):
        problem = f'the folder of "{given}" cannot be written'
    else:
        return
    raise UserError(problem, field="json", advice=_ADVICE)


def write(given: str, record: dict[str, Any]) -> Path:
    """
    Raises:
        UserError: the disk is full, or something has changed since ``check`` (code 5).
    """
    from cnnctl.engine.checkpoint import write_whole

    path = _path(given)
    try:
        write_whole(path, json.dumps(record, indent=1).encode() + b"\n")
    except UserError as error:
        error.field, error.advice = "json", _ADVICE
        raise
    return path


def _path(given: str) -> Path:
    try:
        return Path(given).expanduser().absolute()
    except RuntimeError:
        raise UserError(f'there is no home for "{given}"', field="json", advice=_ADVICE) from None
