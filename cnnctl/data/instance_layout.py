"""Find the images and instances in a folder of the user's own, and tell the format by looking."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from cnnctl.data.box_layout import Layout as BoxLayout
from cnnctl.data.box_layout import find_layout
from cnnctl.data.class_folders import has_images
from cnnctl.data.image_file import printable
from cnnctl.data.mask_layout import Layout as MaskLayout
from cnnctl.data.mask_layout import find_folders
from cnnctl.errors import Exit, UserError

Form = Literal["masks", "coco"]

# What a folder of index masks can be called.
_MASKS = (
    *("masks", "mask", "PedMasks", "SegmentationObject", "instances", "instance_masks"),
    *("labels", "label", "annotations"),
)
_ADVICE = (
    f"index masks: images/ and masks/ (or {', '.join(_MASKS[1:])}), a mask of each image's name "
    "with a number for each instance; COCO: a .json of images, annotations and categories"
)


def find_instance_layout(root: Path, form: Form | None) -> MaskLayout | BoxLayout:
    """Where the masks or the JSON files are.

    Raises:
        UserError: neither is there, or both are (code 3).
    """
    if form == "coco":
        return find_layout(root, "coco")
    if form == "masks":
        return _find_masks(root)
    masks = coco = why = None
    try:
        masks = _find_masks(root)
    except UserError as error:
        why = error
    try:
        coco = find_layout(root, "coco")
    except UserError as error:
        if masks is None and str(error.file).endswith(".json"):
            raise  # there is one, and it says what is wrong with it
    if masks and coco:
        folder, file = next(iter(masks.pairs.values()))[1], next(iter(coco.parts.values())).truth
        raise UserError(
            f"holds index masks ({printable(folder)}) and COCO JSON ({printable(file)})",
            file=printable(root),
            advice="data.format=masks or data.format=coco",
            code=Exit.DATA,
        )
    found = masks or coco
    if found is None:
        assert why is not None
        raise UserError(why.problem, file=why.file, advice=_ADVICE, code=Exit.DATA)
    return found


def _find_masks(root: Path) -> MaskLayout:
    layout = find_folders(root, _MASKS)
    folders = [masks for _, masks in layout.pairs.values()]
    if not any(map(has_images, folders)):  # annotations/ can be COCO's
        raise UserError("holds no masks", file=printable(folders[0]), code=Exit.DATA)
    return layout
