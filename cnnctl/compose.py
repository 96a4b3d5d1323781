"""Compose the configuration with Hydra, and say in one sentence what is wrong with it.

Only Hydra's compose API is used here: it runs nothing, so a configuration can be inspected before
any of it is believed. Nothing in this file imports torch; a mistyped key is answered at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cnnctl.binding import typed
from cnnctl.errors import UserError, nearest

# Hydra nodes that name code. Everything else under ``hydra`` is a path, a flag or a number.
_HYDRA_TARGETS = ("hydra._internal.core_plugins.", "hydra_plugins.")
_EMPTY_LOGGING = {"version": 1, "root": None, "disable_existing_loggers": False}

# The keys that belong to no group, in whichever command has them.
_TYPES: dict[str, Any] = {
    "seed": int,
    "resume": str | None,
    "weights": str | None,
    "init_from": str | None,
    "outputs": str,
    "trust": list[str],
    "checkpoint": str | list[str] | None,
    "predictions": str | None,
    "split": str,
    "variants": list[str],
    "parts": list[str],
    "turns": int,
    "budget": float,
    "profile": bool,
    "json": str | None,
}


def conf_dir() -> Path:
    """The folder of the YAML files: inside the package in a wheel, beside it in a checkout."""
    here = Path(__file__).parent
    return next(path for path in (here / "conf", here.parent / "conf") if path.is_dir())


def groups() -> dict[str, list[str]]:
    """Config groups and their options, from the file names alone."""
    folders = sorted(path for path in conf_dir().iterdir() if path.is_dir())
    return {path.name: sorted(file.stem for file in path.glob("*.yaml")) for path in folders}


def compose(primary: str, overrides: list[str], config_dir: str | None = None) -> DictConfig:
    """The configuration of ``primary`` (``train``, ``eval``, ...) with Hydra's own node in it.

    Args:
        config_dir: a folder of the user's own YAML files, searched before the project's.

    Raises:
        UserError: an unknown key, group or option; a file that is not YAML; a node that names code
            where none may be named.
    """
    config = _compose(primary, overrides, config_dir)
    _check_hydra(config.hydra)
    _check_job(config, overrides)
    return config


def settings(config: DictConfig) -> DictConfig:
    """The configuration without Hydra's node, every interpolation resolved."""
    plain = _plain(config)
    for name, hint in _TYPES.items():
        if name in plain:
            typed(plain[name], hint, name)
    return OmegaConf.create(plain, flags={"struct": True})


def run_dir(config: DictConfig) -> Path:
    """Where this run goes: ``hydra.run.dir``, with the time and the choices filled in."""
    from hydra.core.hydra_config import HydraConfig

    HydraConfig.instance().set_config(config)
    return Path(str(config.hydra.run.dir)).absolute()


def choices(config: DictConfig) -> dict[str, str]:
    """The option chosen in every group of ours: ``{"model": "lenet", ...}``."""
    ours = groups()
    chosen = config.hydra.runtime.choices.items()
    return {str(group): str(option) for group, option in chosen if group in ours}


def override(
    config: dict[str, Any], overrides: list[str], config_dir: str | None = None
) -> tuple[DictConfig, dict[str, str]]:
    """Apply ``group=option`` and ``key=value`` to a configuration read from a checkpoint.

    Args:
        config_dir: as in ``compose``.

    Returns:
        the new configuration and the groups that were chosen anew.
    """
    parsed = [_parse(text) for text in overrides]
    known = groups()
    chosen = {key: str(value) for key, value in parsed if key in known}
    result = OmegaConf.create(config, flags={"struct": True})
    _check_job(result, [])
    for group in chosen:
        own = [text for text in overrides if re.match(rf"{group}[.=]", text)]
        chosen_anew = settings(compose("train", own, config_dir))[group]
        # An older checkpoint may be from before there was such a group.
        OmegaConf.update(result, group, chosen_anew, merge=False, force_add=True)
    for key, value in parsed:
        if key in known or key.split(".")[0] in chosen:
            continue
        if key not in _flat_keys(result):
            raise UserError("unknown key", field=key, advice=nearest(key, _flat_keys(result)))
        OmegaConf.update(result, key, value)
    return result, chosen


def _parse(text: str) -> tuple[str, Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise _syntax(text, error) from None
    if parsed.is_sweep_override() or parsed.is_delete() or parsed.is_add():
        raise UserError("only key=value may be given beside a checkpoint", field=text)
    return parsed.key_or_group, parsed.value()


def _compose(primary: str, overrides: list[str], config_dir: str | None) -> DictConfig:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from yaml import YAMLError

    extra = []
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise UserError("there is no such folder", file=config_dir, field="--config-dir")
        extra = [f"hydra.searchpath=[file://{Path(config_dir).absolute()}]"]
    try:
        with initialize_config_dir(str(conf_dir().absolute()), version_base="1.3"):
            return hydra_compose(primary, [*overrides, *extra], return_hydra_config=True)
    except UnicodeDecodeError as error:
        raise UserError(f"a configuration file is not UTF-8: {error}") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else None
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise UserError(
            f"not valid YAML: {problem}", file=mark and mark.name, record=where
        ) from None
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error, primary, overrides, config_dir) from None


def explain(
    error: Exception, primary: str, overrides: list[str], config_dir: str | None = None
) -> UserError:
    """Hydra's error in the user's words, with the nearest name that exists."""
    from hydra.errors import MissingConfigException, OverrideParseException

    if isinstance(error, OverrideParseException):
        return _syntax(error.override, error)
    if isinstance(error, MissingConfigException) and "/" in (error.missing_cfg_file or ""):
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        there = error.options or groups().get(group, [])
        return UserError(f'there is no {group} "{option}"', advice=nearest(option, there))
    text = f"{error}\n{error.__cause__ or ''}"
    if key := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(key[1].split("@")[0], primary, overrides, config_dir)
    if key := re.search(r"Ambiguous value for '([^']+)'", text):
        return UserError("is given twice", field=key[1], advice="leave one of them out")
    key = re.search(r"full_key: (\S+)", text)
    first = next(line for line in text.splitlines() if line.strip())
    return UserError(first.strip(), field=key[1] if key else None)


def _unknown_key(key: str, primary: str, overrides: list[str], config_dir: str | None) -> UserError:
    options = [text for text in overrides if text.partition("=")[0] in groups()]
    if options == overrides:  # one of their files names it, and would again
        raise UserError("unknown key, in a configuration file", field=key, file=config_dir)
    try:
        base = _compose(primary, options, config_dir)
    except UserError:  # an option is wrong too; this one is said first
        base = _compose(primary, [], None)
    names = [name for name in _flat_keys(base) if not name.startswith("hydra")]
    names += groups() if primary == "train" else []
    section, _, last = key.rpartition(".")
    inside = [name for name in names if name.startswith(f"{section}.")] if section else names
    if inside and section:
        advice = nearest(last, {name[len(section) + 1 :] for name in inside})
        advice = advice.replace('mean "', f'mean "{section}.')
    else:
        advice = nearest(key, {name for name in names if "." not in name} if not section else names)
    return UserError("unknown key", field=key, advice=advice)


def _syntax(text: str, error: Exception) -> UserError:
    if "=" not in text:
        return UserError("is not of the form key=value", field=text, advice="see cnnctl --help")
    reason = str(error).splitlines()[0]
    return UserError(f"cannot be read: {reason}", field=text, advice="quote it: 'key=\"a, b\"'")


def _check_hydra(node: DictConfig) -> None:
    """Refuse what would run code by a name in a configuration: ``hydra.callbacks`` and the like."""
    plain = OmegaConf.to_container(node, resolve=False)
    assert isinstance(plain, dict)
    for name in ("job_logging", "hydra_logging"):
        if plain[name] != _EMPTY_LOGGING:
            raise _names_code(f"hydra.{name}")
    if plain["callbacks"]:
        raise _names_code("hydra.callbacks")
    searchpath = plain["searchpath"] or []
    if any(not str(path).startswith("file://") for path in searchpath):
        raise _names_code("hydra.searchpath")
    for key, value in _walk(plain, "hydra"):
        is_target = key.endswith("._target_")
        if is_target and not str(value).startswith(_HYDRA_TARGETS):
            raise _names_code(key)


def _check_job(config: DictConfig, overrides: list[str]) -> None:
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    if plain.get("trust") and not any(text.startswith("trust=") for text in overrides):
        raise UserError("only the command line can set it", field="trust")
    steps = (plain.get("trainer") or {}).get("steps")
    if steps is not None and any(text.startswith("trainer.epochs=") for text in overrides):
        raise UserError(
            f"has no effect: trainer.steps={steps} sets the length",
            field="trainer.epochs",
            advice="add trainer.steps=null, or set trainer.steps=",
        )
    known = groups()
    for key, value in _walk({k: v for k, v in plain.items() if k != "hydra"}, ""):
        parts = key.split(".")
        if parts[-1].startswith("_") and parts[-1].endswith("_"):
            good = parts[-1] == "_target_" and len(parts) == 2 and parts[0] in known
            if not good:
                raise _names_code(key)
        if isinstance(value, str) and re.search(r"\$\{\s*oc\.(env|decode|create)", value):
            raise UserError(
                "may not read the environment: a checkpoint would carry it along",
                field=key,
                advice="write the value on the command line",
            )
        if value == "???":
            raise UserError("has no value", field=key, advice=f"add {key}=...")


def _names_code(key: str) -> UserError:
    return UserError("a configuration cannot name code here", field=key, advice="leave it out")


def _walk(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf; an empty dict or list is a leaf too."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _walk(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list) and node:
        for index, value in enumerate(node):
            yield from _walk(value, f"{path}[{index}]")
    else:
        yield path, node


def flat(config: dict[str, Any]) -> list[tuple[str, Any]]:
    """(dotted key, value) of every leaf of plain values."""
    return list(_walk(config, ""))


def _flat_keys(config: DictConfig) -> list[str]:
    plain = OmegaConf.to_container(config, resolve=False)
    names = {key.partition("[")[0] for key, _ in _walk(plain, "")}  # a list is one key
    return sorted(name for name in names if not name.endswith("_target_"))


def _plain(config: DictConfig) -> dict[str, Any]:
    """Everything but Hydra's node as plain values, interpolations resolved."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    own._set_parent(None)
    try:
        plain = OmegaConf.to_container(own, resolve=True)
    except OmegaConfBaseException as error:
        first = str(error).splitlines()[0]
        raise UserError(first, field=getattr(error, "full_key", None)) from None
    except RecursionError:
        raise UserError("two keys refer to each other through ${...}") from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def split_own(
    primary: str, overrides: list[str], names: tuple[str, ...] = (), known: tuple[str, ...] = ()
) -> tuple[list[str], list[str]]:
    """Overrides of ``primary``'s own keys (or of ``names``), and those meant for a checkpoint's.

    Args:
        known: what the others may begin with, besides the groups.
    """
    own = names or tuple(str(key) for key in settings(compose(primary, _required(primary))))
    mine = [text for text in overrides if _first_key(text) in (*own, "hydra")]
    others = [text for text in overrides if text not in mine]
    known = (*known, *groups())
    for text in others:
        if (first := _first_key(text)) not in known:
            raise UserError("unknown key", field=first, advice=nearest(first, {*own, *known}))
    return mine, others


def _required(primary: str) -> list[str]:
    """A stand-in for every ``???``, so that the keys can be listed."""
    base = _compose(primary, [], None)
    return [f"{key}=x" for key in base if OmegaConf.is_missing(base, key)]


def _first_key(text: str) -> str:
    return re.split(r"[.=]", text.lstrip("+~"))[0]


def quoted(path: Path) -> str:
    """A path as Hydra's grammar wants it: in quotes only where it needs them."""
    text = str(path)
    plain = re.fullmatch(r"[A-Za-z0-9._/+-]+", text)
    return text if plain else "'" + text.replace("'", r"\'") + "'"


def quoted_list(key: str, text: str) -> str:
    """An override of ``key``, a list of overrides, with each of them in quotes: Hydra's grammar
    has no ``=`` in a list. Every other override as it is."""
    name, given, value = text.partition("=")
    if name != key or not given or value == "null":
        return text
    listed = value.strip()
    if listed[:1] == "[" and listed[-1:] == "]":
        listed = listed[1:-1]
    items = [item for item in split_outside(listed, ",") if item]
    return f"{key}=[{','.join(_in_quotes(item) for item in items)}]"


def split_outside(text: str, separator: str) -> list[str]:
    """Split at ``separator`` where it is in no brackets or quotes; what is around a piece is
    stripped of spaces."""
    pieces, depth, quote = [""], 0, ""
    for letter in text:
        if letter == separator and not depth and not quote:
            pieces.append("")
            continue
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "[({") - (letter in "])}")
        pieces[-1] += letter
    return [piece.strip() for piece in pieces]


def _in_quotes(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text
    return "'" + text.replace("'", r"\'") + "'"
