"""The work that ``cnnctl bench peers`` compares, and how many times as fast ours is meant to be.

Nothing here imports torch: a mistyped name is answered at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Targets = Mapping[str, float]  # kind of machine -> the least ratio; see ``machine_kind``


@dataclass(frozen=True)
class Work:
    """
    Args:
        about: what is timed, in a few words.
        kind: the module of this package that makes the data and our side of it; what a peer DOES.
        overrides: of ``train``: the network, the recipe, the batch.
        images: of each turn, where the user sets no number.
        side: of the images in pixels, where they have no size of their own.
        theirs: what a peer that has networks of its own calls this one.
        targets: peer -> the least ratio of its time to ours, for each kind of machine.
    """

    about: str
    kind: str
    overrides: tuple[str, ...]
    images: int
    side: int = 32
    theirs: str = ""
    targets: Mapping[str, Targets] = field(default_factory=dict)


AMX, PLAIN, CUDA = "amx", "plain", "cuda"
_OWN_LOOP = {kind: 1 / 1.05 for kind in (AMX, PLAIN, CUDA)}  # at most 1.05 of its time
_SGD = ("optimizer=sgd", "optimizer.lr=0.05", "optimizer.nesterov=true", "schedule=constant")
_CIFAR = (
    *_SGD,
    "augmentation=standard",
    "augmentation.flip=true",
    "trainer.batch_size=128",
    "trainer.decay_norm_and_bias=true",
)


def _epoch(about: str, *overrides: str, images: int = 2560, **least: float) -> Work:
    targets = {"thirty_lines": _OWN_LOOP, **({"reference_loop": least} if least else {})}
    return Work(about, "epoch", (*_CIFAR, *overrides), images, targets=targets)


# torchvision's numbers, for images of any size.
_RCNN = ("backbone=resnet50", "model.regions=512")
_RCNN = (*_RCNN, "model.proposals_train=2000", "model.proposals_test=1000")


def _detector(
    name: str, task: str, theirs: str, *overrides: str, side: int, **least: float
) -> dict[str, Work]:
    """A training step and an inference of one detector, by the name of each work."""
    chosen, against = (f"task={task}", f"model={name}", *overrides), "torchvision_detection"
    kinds = {"step": least, "inference": {AMX: 4.0}}
    step, inference = (
        Work(f"{name}, {what}", f"detector_{what}", chosen, 2, side, theirs, {against: targets})
        for what, targets in kinds.items()
    )
    return {name: step, f"{name}_inference": inference}


def _segmenter(about: str, *overrides: str, side: int, theirs: str = "") -> Work:
    chosen = ("task=segment", "task.dice=0", "task.class_weights=none", *overrides)
    least = {"plain_segmentation": {AMX: 3.0}}
    return Work(about, "segmenter_step", chosen, 4, side, theirs, least)


WORKS: dict[str, Work] = {
    "resnet20": _epoch("ResNet-20, training", "model=resnet20", amx=5.0, plain=1.7),
    "lenet": _epoch("LeNet, training", "model=lenet", images=12800),
    "vgg11": _epoch(
        "VGG-11, training", "model=vgg11", "model.norm=true", "model.units=512", amx=4.0
    ),
    "resnet18": _epoch(
        "ResNet-18 for 32 x 32, training", "model=resnet18", "backbone.small_input=true", amx=4.0
    ),
    **_detector(
        *("faster_rcnn", "detect", "fasterrcnn_resnet50_fpn", *_RCNN), side=640, amx=6.0, plain=1.15
    ),
    **_detector(
        *("mask_rcnn", "instance", "maskrcnn_resnet50_fpn", *_RCNN), side=640, amx=6.0, plain=1.15
    ),
    **_detector(
        *("retinanet", "detect", "retinanet_resnet50_fpn", "backbone=resnet50"),
        "model.detections=300",
        side=640,
        amx=5.0,
        plain=1.0,
    ),
    **_detector("ssd300", "detect", "ssd300_vgg16", side=300, amx=5.0, plain=1.0),
    **_detector("fcos", "detect", "fcos_resnet50_fpn", "backbone=resnet50", side=640),
    **_detector("ssdlite", "detect", "ssdlite320_mobilenet_v3_large", side=320),
    "unet": _segmenter("U-Net, step", "model=unet", "model.width=32", side=256),
    "fcn": _segmenter(
        "FCN on ResNet-50, step", "model=fcn_resnet", side=256, theirs="fcn_resnet50"
    ),
    "jpegs": Work(
        "decoding and augmenting, one core",
        "stream",
        ("data=folder", "augmentation=random_resized_crop", "augmentation.size=224"),
        256,
        500,
        targets={"pil_loader": {AMX: 2.0, PLAIN: 2.0, CUDA: 2.0}},
    ),
    "cifar10_speed": Work(
        "CIFAR-10 to 94 %, a whole training",
        "recipe",
        ("experiment=cifar10_speed",),
        50_000,
        targets={"airbench": {CUDA: 1.0}},
    ),
}
