"""Pascal VOC 2007 to 2012, object detection: boxes of 20 classes.

Everingham et al., "The Pascal Visual Object Classes (VOC) challenge", 2010, and the development
kits. ``difficult`` objects are neither demanded nor penalised.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from cnnctl.data.base import data_root
from cnnctl.data.box_files import BoxFiles
from cnnctl.data.image_file import printable
from cnnctl.data.mask_pairs import Paths, check_share
from cnnctl.data.palette import voc_palette
from cnnctl.data.voc import VOC
from cnnctl.data.voc_lists import BOXES, Lists, check_split, find_parts, missing, year_folders
from cnnctl.data.voc_xml import read_xml_files
from cnnctl.errors import UserError


class VOCBoxes(BoxFiles):
    """Images of any size with the boxes of their objects; what ``data=voc`` is for detection.

    The boxes of the official test images are public for 2007 alone. So by default ``test`` is the
    official ``val`` list, and ``train`` the official ``train`` list less a share that is held out
    as ``val``, always the same. Papers' own: ``years=[2007] train_list=trainval test_list=test``,
    and 07+12 ``years=[2007,2012]`` with the same lists: ``test`` is then 2007's. An image that two
    of the lists name is only in the later of train, val, test (``remarks`` counts them).

    Args:
        split: train, val or test.
        root: the folder that holds VOCdevkit/; None is $CNNCTL_DATA or a per-user cache folder.
        years: the lists of these are united.
        train_list, val_list, test_list: files in ImageSets/Main, without .txt. None for
            ``val_list`` holds ``validation`` out of ``train_list``; None for ``test_list`` is no
            test split.
        validation: share of ``train_list`` held out where there is no ``val_list``; 0 is none.
        sbd: None: it adds masks alone.

    Raises:
        UserError: files are absent, a list is empty or names a missing file, an annotation is
            wrong, or the split has no box.
    """

    classes = VOC.classes[1:]
    palette = voc_palette(len(VOC.classes))[1:]
    channels = VOC.channels
    mean, std = VOC.mean, VOC.std
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
        if sbd is not None:
            raise UserError(
                "sbd adds masks, and this task learns boxes",
                field="data.sbd",
                advice="leave it out (data.sbd=null)",
            )
        lists = Lists(train_list, val_list, test_list)
        check_split(split, lists, validation)
        folders = year_folders(BOXES, root, years, train_list, self.option())
        parts = find_parts(BOXES, folders, lists, validation)
        self.split, self._left_out = split, parts.remarks
        chosen, home = list(parts.samples[split].values()), data_root(root)
        self.images = Paths(home, ((s.image, s.sizes[0]) for s in chosen))
        self.annotations = Paths(home, ((s.truth, s.sizes[1]) for s in chosen))
        files = [self.annotations[index] for index in range(len(chosen))]
        self.table, _ = read_xml_files(files, self.classes)
        list_file = lists.named().get(split, train_list)
        self.refuse_boxless(printable(folders[0] / BOXES.lists / f"{list_file}.txt"))

    def truth_name(self, index: int) -> str:
        return printable(Path(self.annotations[index]).name)

    def remarks(self) -> list[str]:
        return [*self._left_out, *super().remarks()]

    @classmethod
    def option(cls) -> str:
        return VOC.option()

    @classmethod
    def missing(cls, root: str | None) -> list[str]:
        return missing(BOXES, root)

    @classmethod
    def fetch(cls, root: str | None) -> str:
        return VOC.fetch(root)
