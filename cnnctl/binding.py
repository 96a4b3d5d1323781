"""Check the values of a configuration node against the signature of what they are passed to."""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin, get_type_hints

from cnnctl.errors import UserError, nearest

# What a constructor may ask for by name, and a configuration may not set.
PARTS = {
    "in_channels",
    "num_classes",
    "size",
    "backbone",
    "mirror",
    "native",
    "mean",
    "std",
    "split",
    "classes",
    "params",
}


def bind(
    target: Any,
    values: dict[str, Any],
    group: str,
    *,
    partial: bool = False,
    given: Iterable[str] = (),
) -> dict[str, Any]:
    """``values`` with each checked against ``target``'s signature, integers made floats."""
    parameters = inspect.signature(target).parameters
    hints = get_type_hints(target.__init__ if isinstance(target, type) else target)
    for name in values:
        if name not in parameters:
            known = parameters.keys() - PARTS
            raise UserError("unknown key", field=f"{group}.{name}", advice=nearest(name, known))
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        and name not in values
        and name not in given
    ]
    if missing and not partial:
        raise UserError("has no value", field=f"{group}.{missing[0]}")
    return {
        name: typed(value, hints.get(name, Any), f"{group}.{name}")
        for name, value in values.items()
    }


def typed(value: Any, hint: Any, field: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"must be a finite number, not {value}", field=field)
    fitted = _fit(value, hint)
    if fitted is _NO:
        raise UserError(f"must be {_words(hint)}, not {value!r}", field=field)
    return fitted


_NO = object()


def _fit(value: Any, hint: Any) -> Any:
    """``value`` as ``hint`` wants it, or ``_NO``; types that YAML cannot hold are let through."""
    origin = get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        fits = (_fit(value, choice) for choice in get_args(hint))
        return next((fitted for fitted in fits if fitted is not _NO), _NO)
    if origin is Literal:
        return value if value in get_args(hint) else _NO
    if origin in (list, tuple):
        return _fit_sequence(value, origin, get_args(hint))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, bool):
        return _NO
    if hint in (int, float, bool, str):
        return value if isinstance(value, hint) else _NO
    if hint in (None, type(None)):
        return None if value is None else _NO
    return value if hint is Any or not isinstance(value, str) else _NO


def _fit_sequence(value: Any, origin: type, inner: tuple[Any, ...]) -> Any:
    if not isinstance(value, list):
        return _NO
    hints = inner if origin is tuple and inner[-1:] != (...,) else inner[:1] * len(value)
    if len(hints) != len(value):
        return _NO
    fitted = [_fit(item, hint) for item, hint in zip(value, hints, strict=True)]
    return _NO if any(item is _NO for item in fitted) else origin(fitted)


def _words(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    origin, inner = get_origin(hint), get_args(hint)
    if hint in names:
        return names[hint]
    if hint in (None, type(None)):
        return "null"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words(choice) for choice in inner)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in inner)
    if origin is tuple and inner[-1:] != (...,):
        return "[" + ", ".join(_words(choice) for choice in inner) + "]"
    if origin in (list, tuple):
        return f"a list, each {_words(inner[0])}"
    return getattr(hint, "__name__", str(hint))
