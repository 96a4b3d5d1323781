"""Where things are kept that can be made again: the user's cache folder, a part for each kind."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def user_cache(kind: str) -> Path:
    """``cnnctl/<kind>`` in $XDG_CACHE_HOME, or in ~/.cache; it may not be there yet.

    A user without a home (in a container, say) has it in the folder for temporary files.
    """
    folder = os.environ.get("XDG_CACHE_HOME")
    if not folder:
        try:
            folder = Path("~/.cache").expanduser()
        except RuntimeError:
            folder = tempfile.gettempdir()
    return Path(folder).absolute() / "cnnctl" / kind
