"""``cnnctl bench peers``: the same work by cnnctl and by what one would pick instead, in turns, in
one process, as a table of ratios with what each side learnt or found beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cnnctl import compose
from cnnctl.binding import typed
from cnnctl.commands import bench_file
from cnnctl.errors import Exit, UserError, nearest
from cnnctl.peers.works.table import WORKS

_KEYS: dict[str, Any] = {
    "work": list[str] | None,
    "peers": list[str] | None,
    "images": int | None,
    "turns": int,
    "budget": float,
    "precision": str,
    "device": str,
    "threads": int | None,
    "workers": int | None,
    "root": str | None,
    "markdown": bool,
    "json": str | None,
}


def run(words: list[str], config_dir: str | None, show: bool = False) -> int:
    """Everything that can be wrong with the command line is said before torch is loaded.

    Args:
        show: print the settings and stop.
    """
    settings = compose.settings(compose.compose("peers", words, config_dir))
    asked = checked(settings)
    if show:
        print(OmegaConf.to_yaml(settings), end="")
        return Exit.DONE
    from cnnctl.commands.peer_table import compare

    return compare(asked)


def checked(settings: Any) -> dict[str, Any]:
    """The keys of conf/peers.yaml, of their types, names among those there are.

    Raises:
        UserError: one is not.
    """
    asked: dict[str, Any] = {}
    for key, hint in _KEYS.items():
        value = settings[key]
        listed = key in ("work", "peers") and isinstance(value, str)
        plain = [value] if listed else list(value) if key in ("work", "peers") and value else value
        asked[key] = typed(plain, hint, key)
    _chosen(asked, "work", list(WORKS))
    _chosen(asked, "peers", peer_names())
    for key, least in (("images", 1), ("turns", 3), ("threads", 1), ("workers", 0)):
        if asked[key] is not None and asked[key] < least:
            raise UserError(f"must be at least {least}, got {asked[key]}", field=key)
    if not asked["budget"] > 0:
        raise UserError(f"must be above 0 seconds, got {asked['budget']:g}", field="budget")
    if asked["precision"] not in ("auto", "fp32", "bf16", "fp16"):
        raise UserError(
            f'there is no precision "{asked["precision"]}"',
            field="precision",
            advice="take fp32, bf16, fp16 or auto",
        )
    bench_file.check(asked["json"])
    return asked


def _chosen(asked: dict[str, Any], key: str, there: Sequence[str]) -> None:
    for name in asked[key] or ():
        if name not in there:
            what = "peer" if key == "peers" else key
            raise UserError(f'there is no {what} "{name}"', field=key, advice=nearest(name, there))
    asked[key] = list(dict.fromkeys(asked[key])) if asked[key] else list(there)


def peer_names() -> list[str]:
    """The modules of ``cnnctl/peers``: a new file is a new peer."""
    import cnnctl.peers

    (folder,) = cnnctl.peers.__path__
    return sorted(path.stem for path in Path(folder).glob("*.py") if path.stem != "__init__")
