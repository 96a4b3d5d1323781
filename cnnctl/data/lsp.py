"""Leeds Sports Pose: 2,000 images of sportspeople, one of them in each with 14 joints.

Johnson and Everingham, "Clustered pose and nonlinear appearance models for human pose estimation",
BMVC 2010. The first 1,000 images are for training, the others for testing. ``joints.mat`` holds
(3, 14, 2000): x and y, counted from 1 as Matlab does, and 1 where a joint is hidden.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from cnnctl.data.base import Dataset, absent, data_root
from cnnctl.data.image_file import printable, read_image
from cnnctl.data.mask_pairs import check_share, divide, no_split
from cnnctl.errors import Exit, UserError
from cnnctl.skeleton import Skeleton

TRAIN = 1000  # of the images, the first
SKELETON = Skeleton(
    names=(
        *("right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle"),
        *("right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow"),
        *("left_wrist", "neck", "head_top"),
    ),
    # Legs, arms, head, and the torso from the neck to the hips.
    sticks=(
        *((0, 1), (1, 2), (5, 4), (4, 3), (6, 7), (7, 8), (11, 10), (10, 9), (12, 13)),
        *((12, 2), (12, 3)),
    ),
    swap=((0, 5), (1, 4), (2, 3), (6, 11), (7, 10), (8, 9)),
    # COCO's for these joints; its shoulders' for neck and head top, which it does not have.
    sigmas=(
        *(0.089, 0.087, 0.107, 0.107, 0.087, 0.089, 0.062, 0.072, 0.079, 0.079, 0.072, 0.062),
        *(0.079, 0.079),
    ),
    reference=(9, 2),  # the torso: left shoulder to right hip
)


class LSP(Dataset):
    """Images of different sizes with the box and the joints of one person each.

    Joints are those of the person, whose left is on the right of an image that faces the camera.
    The data has no boxes: one is the rectangle around the joints, made larger and cut at the image,
    and its area is that of the person.

    Args:
        split: train, val or test.
        root: the folder that holds lsp/, or is it; None is $CNNCTL_DATA or a per-user cache folder.
        validation: share of the training images held out as ``val``; 0 is none.
        margin: of the box, by which it is larger than the joints each way, as a share of its side.

    Raises:
        UserError: files are absent, or joints.mat is not what it must be (code 3).
    """

    fields: ClassVar[tuple[str, ...]] = ("boxes", "keypoints")
    classes = ("person",)
    skeleton = SKELETON
    channels = 3
    mean = (0.485, 0.456, 0.406)  # ImageNet's, as published weights expect
    std = (0.229, 0.224, 0.225)

    def __init__(
        self,
        split: Literal["train", "val", "test"],
        root: str | None = None,
        validation: float = 0.1,
        margin: float = 0.1,
    ) -> None:
        check_share(validation=validation)
        if not 0 <= margin <= 1:
            raise ValueError(f"margin must be from 0 to 1, got {margin:g}")
        if split == "val" and not validation:
            raise no_split(split, "validation")
        home = data_root(root)
        self.folder = _folder(home)
        if self.missing(root):
            raise absent(home, ["lsp/joints.mat", "lsp/images/"], data="lsp", fetch=False)
        self.margin = margin
        self.file = self.folder / "joints.mat"
        joints = read_joints(self.file)
        if split == "test":
            chosen = range(TRAIN, len(joints))
        else:
            first = min(TRAIN, len(joints))
            chosen = divide(first, {"val": validation}, self.file)[split]
        self.chosen = np.array(chosen, np.int64)  # (M,) numbers of images, from 0
        self.joints = joints[self.chosen]  # (M, 14, 3) x, y in pixels, visibility
        if not len(self.chosen):
            raise UserError(
                f"has {len(joints):,} images, the test split is those after the first {TRAIN:,}",
                file=printable(self.file),
                code=Exit.DATA,
            )
        self._check_images()

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        image = read_image(self.path(index), self.channels)
        h, w = image.shape[1:]
        points = torch.from_numpy(self.joints[index].copy())  # (14, 3)
        inside = ((points[:, :2] >= 0) & (points[:, :2] <= torch.tensor([w, h]))).all(1)
        points *= inside[:, None]
        box = self._box(points, h, w)
        none = torch.zeros(1, dtype=torch.bool)
        return image, {
            "boxes": box[None],
            "labels": torch.zeros(1, dtype=torch.int64),
            "crowd": none,
            "difficult": none,
            "area": (box[2:] - box[:2]).prod()[None],
            "keypoints": points[None],
            "swap": SKELETON.mirrored(),
        }

    def _box(self, points: Tensor, height: int, width: int) -> Tensor:
        """(4,) around the points that have a label; the image where none has."""
        limit = torch.tensor([width, height, width, height], dtype=torch.float32)
        placed = points[points[:, 2] > 0, :2]
        if not len(placed):
            return torch.cat([torch.zeros(2), limit[2:]])
        low, high = placed.amin(0), placed.amax(0)
        more = self.margin * (high - low) + 1  # a joint is no point: a pixel at least
        return torch.cat([low - more, high + more]).clamp(min=0).minimum(limit)

    def class_counts(self) -> list[int]:
        return [len(self)]

    def path(self, index: int) -> str:
        return str(self.folder / "images" / f"im{self.chosen[index] + 1:04d}.jpg")

    def sample_name(self, index: int) -> str:
        return printable(self.path(index))

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.joints.tobytes())
        digest.update(self.chosen.tobytes())
        digest.update(repr(self.margin).encode())
        return digest.hexdigest()

    @classmethod
    def missing(cls, root: str | None) -> list[str]:
        folder = _folder(data_root(root))
        there = (folder / "joints.mat").is_file(), (folder / "images").is_dir()
        names = ("lsp/joints.mat", "lsp/images")
        return [name for name, found in zip(names, there, strict=True) if not found]

    def _check_images(self) -> None:
        lacking = [i for i in range(len(self)) if not Path(self.path(i)).is_file()]
        if lacking:
            raise UserError(
                f"{len(lacking):,} of {len(self):,} images are not there, the first: "
                f"{self.sample_name(lacking[0])}",
                file=printable(self.folder / "images"),
                advice="unpack the whole data set: im0001.jpg to im2000.jpg",
                code=Exit.DATA,
            )


def _folder(home: Path) -> Path:
    return home / "lsp" if (home / "lsp").is_dir() else home


def read_joints(file: Path) -> np.ndarray:
    """(M, 14, 3) float32: x and y in pixels, the centre of the first at 0.5, and visibility 1, 2.

    Raises:
        UserError: the file is not LSP's (code 3).
    """
    from scipy.io import loadmat

    try:
        held = loadmat(file).get("joints")
    except Exception as error:  # what a harmed file raises has no one type
        raise _foreign(file, f"cannot be read as a Matlab file: {error}") from None
    if held is None:
        raise _foreign(file, 'holds no matrix "joints"')
    if held.ndim != 3 or held.shape[:2] != (3, len(SKELETON)) or held.dtype.kind not in "fiu":
        raise _foreign(file, f'"joints" is {held.shape} {held.dtype}, must be (3, 14, images)')
    joints = held.astype(np.float64).transpose(2, 1, 0)  # (M, 14, 3)
    broken = ~(np.isfinite(joints).all((1, 2)) & np.isin(joints[..., 2], (0, 1)).all(1))
    if broken.any():
        raise _foreign(
            file,
            f"image {broken.argmax() + 1} has a joint that is no number, or is neither hidden (1) "
            "nor seen (0)",
        )
    place = joints[..., :2] - 0.5  # Matlab's pixel 1 is from 0 to 1
    return np.concatenate([place, 2 - joints[..., 2:]], 2).astype(np.float32)


def _foreign(file: Path, problem: str) -> UserError:
    advice = "it must be that of lsp_dataset.zip: not of the extended set, which is 14 x 3"
    return UserError(problem, file=printable(file), advice=advice, code=Exit.DATA)
