"""Where things are kept that can be made again: the user's cache folder, a part for each kind."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache(kind: str) -> Path:
    """``cnnctl/<kind>`` in $XDG_CACHE_HOME, or in ~/.cache; it may not be there yet."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(folder).absolute() / "cnnctl" / kind
