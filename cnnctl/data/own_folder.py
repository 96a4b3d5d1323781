"""What data sets of the user's own have in common: a folder to be named, colours of ImageNet."""

from __future__ import annotations

from pathlib import Path

from cnnctl.data.base import Dataset, data_root
from cnnctl.data.image_file import printable
from cnnctl.errors import Exit, UserError

# torchvision's figures for ImageNet; grey is their mean over the channels.
IMAGENET = {
    3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    1: ((0.449,), (0.226,)),
}


class OwnFolder(Dataset):
    """Looked for in ``data.root`` alone, which is the data set's own folder."""

    shared_root = False

    @classmethod
    def home(cls, root: str | None) -> Path | None:
        return None if root is None else data_root(root)

    @classmethod
    def missing(cls, root: str | None) -> list[str]:
        home = cls.home(root)
        return [] if home is not None and home.is_dir() else ["data.root=<your folder>"]

    @classmethod
    def existing(cls, root: str | None, holds: str) -> Path:
        """The folder that the user named.

        Args:
            holds: what should be in it, for the sentence where none is named.

        Raises:
            UserError: none is named (code 2), or it is no folder (code 3).
        """
        home = cls.home(root)
        if home is None:
            raise UserError(
                f"data={cls.option()} needs the folder that holds {holds}",
                field="data.root",
                advice="data.root=<your folder>",
            )
        if not home.is_dir():
            what = "is no folder" if home.exists() else "there is no such folder"
            raise UserError(
                what, file=printable(home), advice="data.root=<your folder>", code=Exit.DATA
            )
        return home


def per_channel(
    name: str, given: tuple[float, ...] | None, default: tuple[float, ...]
) -> tuple[float, ...]:
    """``given``, or ``default`` where that is None; raises ValueError where it cannot be one."""
    if given is None:
        return default
    if len(given) != len(default):
        raise ValueError(
            f"{name} must have {len(default)} numbers, one a channel, got {len(given)}"
        )
    if not all(0 <= value <= 1 for value in given) or (name == "std" and 0 in given):
        raise ValueError(f"{name} is of pixels scaled to 0..1, got {list(given)}")
    return tuple(given)
