"""Where what can be made again is kept."""

from __future__ import annotations

import tempfile
from pathlib import Path

from cnnctl.user_cache import user_cache


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache("kernels") == tmp_path / "cnnctl" / "kernels"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert user_cache("data") == tmp_path / "home" / ".cache" / "cnnctl" / "data"


def test_a_user_without_a_home(monkeypatch):
    def expanduser(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", expanduser)
    assert user_cache("data") == Path(tempfile.gettempdir()).absolute() / "cnnctl" / "data"
