"""Pascal VOC 2007 to 2012, semantic segmentation: 20 classes, background, and void (255).

Everingham et al., "The Pascal Visual Object Classes (VOC) challenge", 2010, and the development
kits. 255 marks the band around objects and what is too hard to tell.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from cnnctl.data.base import Dataset, data_root, download
from cnnctl.data.mask_file import read_mask
from cnnctl.data.mask_pairs import MaskPairs, Paths, check_share, files_in
from cnnctl.data.mask_values import Values
from cnnctl.data.voc_lists import (
    MASKS,
    Lists,
    Parts,
    Sample,
    check_split,
    find_parts,
    missing,
    official_val,
    year_folders,
)
from cnnctl.data.voc_sbd import Kind, read_sbd, sbd_files


class VOC(MaskPairs):
    """Images of any size with a class for each pixel.

    The masks of the official test images are not public after 2007. So by default ``test`` is the
    official ``val`` list, on which papers report; ``train`` is the official ``train`` list less a
    share that is held out as ``val``, always the same, for choosing the best epoch. An image that
    two of the lists name is only in the later of train, val, test (``remarks`` counts them); an
    image of 2007 that 2008 and later list again (000032 as 2007_000032) is one image.

    Args:
        split: train, val or test.
        root: the folder that holds VOCdevkit/; None is $CNNCTL_DATA or a per-user cache folder.
        years: the lists of these are united; 2012's hold nearly all of the earlier ones.
        train_list, val_list, test_list: files in ImageSets/Segmentation, without .txt. None for
            ``val_list`` holds ``validation`` out of ``train_list``; None for ``test_list`` is no
            test split.
        validation: share of ``train_list`` held out where there is no ``val_list``; 0 is none.
        sbd: a folder of further training masks, absolute or within VOC<year>: PNGs as in
            SegmentationClassAug, or SBD's own ``benchmark_RELEASE`` (Hariharan et al. 2011). An
            image of any year's ``val`` list below ``root``, used or not, stays out.

    Raises:
        UserError: files are absent, a list is empty or names a missing file, the split is empty.
    """

    classes: tuple[str, ...] = (
        "background",
        *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
        *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
        *("train", "tvmonitor"),
    )
    channels = 3
    mean = (0.485, 0.456, 0.406)  # ImageNet's, as published weights expect
    std = (0.229, 0.224, 0.225)

    values: ClassVar[Values] = Values(range(len(classes)))
    stored: ClassVar[bool] = True  # the development kits read with imread, which does not turn

    def __init__(
        self,
        split: Literal["train", "val", "test"],
        root: str | None = None,
        years: tuple[Literal[2007, 2008, 2009, 2010, 2011, 2012], ...] = (2012,),
        train_list: str = "train",
        val_list: str | None = None,
        test_list: str | None = "val",
        validation: float = 0.1,
        sbd: str | None = None,
    ) -> None:
        check_share(validation=validation)
        if not years:
            raise ValueError("years must name one year at least")
        lists = Lists(train_list, val_list, test_list)
        check_split(split, lists, validation)
        home = data_root(root)
        folders = year_folders(MASKS, root, years, train_list, self.option())
        parts = find_parts(MASKS, folders, lists, validation)
        if sbd is not None:
            known = set().union(*parts.samples.values(), official_val(MASKS, home))
            add_sbd(parts, sbd, folders, known)
        chosen = parts.samples[split].values()
        self._remarks = parts.remarks
        self.images = Paths(home, ((s.image, s.sizes[0]) for s in chosen))
        self.masks = Paths(home, ((s.truth, s.sizes[1]) for s in chosen))

    def classes_in(self, path: str) -> Tensor:
        return self.values.classes(read_sbd(path) if path.endswith(".mat") else read_mask(path))

    def remarks(self) -> list[str]:
        return self._remarks

    @classmethod
    def serving(cls, fields: tuple[str, ...]) -> type[Dataset]:
        """A class for each pixel here; instances have maps, boxes a list of images of their own."""
        if set(fields) <= set(cls.fields):
            return cls
        if "masks" in fields:
            from cnnctl.data.voc_instances import VOCInstances

            return VOCInstances.serving(fields)
        from cnnctl.data.voc_boxes import VOCBoxes

        return VOCBoxes.serving(fields)

    @classmethod
    def missing(cls, root: str | None) -> list[str]:
        return missing(MASKS, root)

    @classmethod
    def fetch(cls, root: str | None) -> str:
        """VOC 2012, by torchvision's downloader."""
        from torchvision.datasets import VOCSegmentation
        from torchvision.datasets.voc import DATASET_YEAR_DICT

        source: Any = DATASET_YEAR_DICT["2012"]
        folder = data_root(root)
        download(
            lambda: VOCSegmentation(str(folder), year="2012", image_set="train", download=True),
            data=cls.option(),
            folder=folder,
            address=source["url"].rpartition("/")[0],
            files=[(source["filename"], source["md5"])],
        )
        return f"data={cls.option()} is in {folder / 'VOCdevkit/VOC2012'}"


def add_sbd(
    parts: Parts, sbd: str, folders: list[Path], known: set[str], kind: Kind = "cls"
) -> None:
    """Put SBD's images into ``train``, but those that are known."""
    folder = next((f / sbd for f in folders if (f / sbd).is_dir()), Path(sbd).expanduser())
    found = sbd_files(folder, kind)
    images = {Path(name).stem: (voc, size) for voc in folders[::-1] for name, size in
              files_in(voc / "JPEGImages").items()}  # fmt: skip
    lacking = 0
    for name, (mask, size) in sorted(found.items()):
        if name in known:
            continue
        if name in images:
            voc, image_size = images[name]
            image = voc / f"JPEGImages/{name}.jpg"
            parts.samples["train"][name] = Sample(image, mask, (image_size, size))
        else:
            lacking += 1
    if lacking:
        parts.remarks.append(f"{lacking:,} masks of sbd left out: their images are not there")
