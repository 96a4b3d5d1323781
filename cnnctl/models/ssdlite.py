"""SSDlite on MobileNetV3-large: Sandler et al., "MobileNetV2", arXiv:1801.04381, section 6.2, and
Howard et al., "Searching for MobileNetV3", arXiv:1905.02244, section 6.3 (table 6: 22.0 COCO AP),
by torchvision (21.3), whose names of weights are kept so that the published ones load.

SSD (Liu et al., arXiv:1512.02325) with every convolution of the extra layers and of the head made
of a depthwise one and a 1x1.

Differs from the papers: six default boxes on every map, of scales up to 0.95; momentum and epsilon
of the normalisation, NMS at 0.55 of 300 boxes, all torchvision's; a single image of one pixel is
normalised by the running statistics; maps beyond the first of one pixel are left out.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from cnnctl.models.deeplabv3 import PooledNorm
from cnnctl.models.published_detectors import (
    CENTRED,
    Published,
    entry_of,
    load_features,
    load_published,
)
from cnnctl.models.ssd import Rules, SingleShot
from cnnctl.ops.default_boxes import default_shapes, spread

_STRIDE, _MAPS = 16, 6  # of the first map; the most maps
_C5 = 13  # the block of MobileNetV3-large whose expansion layer is the first map
_WIDTHS = (512, 256, 256, 128)  # of the extra layers
_RATIOS = (2.0, 3.0)
PUBLISHED = Published(
    "ssdlite320_mobilenet_v3_large",
    by_class=r"head\.classification_head\.module_list\.\d+\.1",
    fits="an input of 320 x 320",
    background=True,
    normal=CENTRED,
)


class SSDLite(SingleShot):
    """Maps of two layers of MobileNetV3-large, at strides 16 and 32, and of four extra ones.

    Args:
        in_channels: C.
        num_classes: K.
        size: (h, w) of the training input, which settles the number of maps.
        reduced_tail: half the channels in MobileNet's last blocks, as the published weights have.
        scale_min, scale_max: side of the first and the last map's default boxes, as a share of the
            image's.
        negatives, score, overlap, candidates, detections: see ``Rules``.
        weights: "COCO_V1", torchvision's of the whole network.
        backbone_weights: torchvision's of MobileNetV3-large, without ``reduced_tail``.
        classes: their names, by which rows of the published head are taken.

    Attributes:
        rebuilt: the layers that start at random in spite of ``weights``, by name.

    Raises:
        ValueError: a number is out of range, the input is too small, or weights do not fit.
        UserError: the weights are not on this machine and cannot be downloaded.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        size: tuple[int, int],
        reduced_tail: bool = True,
        scale_min: float = 0.2,
        scale_max: float = 0.95,
        negatives: float = 3.0,
        score: float = 0.001,
        overlap: float = 0.55,
        candidates: int = 300,
        detections: int = 300,
        weights: str | None = None,
        backbone_weights: str | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        if weights is not None and backbone_weights is not None:
            raise ValueError("weights hold those of the backbone: set backbone_weights to null")
        if backbone_weights is not None and reduced_tail:
            raise ValueError("backbone_weights are of a backbone with reduced_tail false")
        if min(size) < _STRIDE:
            raise ValueError(
                f"SSDlite needs images of at least {_STRIDE} x {_STRIDE}, got {size[0]} x {size[1]}"
            )
        if not 0 < scale_min <= scale_max:
            raise ValueError(
                f"scales must be 0 < scale_min <= scale_max, got {scale_min} and {scale_max}"
            )
        sides = _sides(min(size))
        count = len(sides)
        shapes = default_shapes([*spread(count, scale_min, scale_max)[:-1], 1.0], [_RATIOS] * count)
        rules = Rules(0.5, negatives, score, overlap, candidates, detections)
        backbone, head = _network(
            in_channels, num_classes, reduced_tail, backbone_weights, len(shapes[0]), sides
        )
        super().__init__(backbone, head, shapes, [None] * count, rules)
        if weights is not None:
            if (reduced_tail, scale_min, scale_max) != (True, 0.2, 0.95):
                raise ValueError("published weights are of a reduced tail, scales 0.2 and 0.95")
            self.rebuilt = load_published(self, PUBLISHED, weights, num_classes, classes)


def _sides(side: int) -> list[int]:
    """Of the maps of an image of ``side``: halved until one has one pixel."""
    sides = [-(-side // _STRIDE)]
    while len(sides) < _MAPS and sides[-1] > 1:
        sides.append(-(-sides[-1] // 2))
    return sides


def _network(
    in_channels: int,
    num_classes: int,
    reduced_tail: bool,
    weights: str | None,
    boxes: int,
    sides: list[int],
) -> tuple[nn.Module, nn.Module]:
    """torchvision's backbone and head, with as many maps as there are ``sides``."""
    from torchvision.models import mobilenet_v3_large
    from torchvision.models.detection.ssdlite import (
        SSDLiteFeatureExtractorMobileNet,
        SSDLiteHead,
    )

    norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
    mobile: Any = mobilenet_v3_large(norm_layer=norm, reduced_tail=reduced_tail)
    stem = mobile.features[0][0]
    if in_channels != 3:
        mobile.features[0][0] = nn.Conv2d(in_channels, stem.out_channels, 3, 2, 1, bias=False)
    if weights is None:
        for layer in mobile.features.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.03)
    else:
        load_features(mobile, entry_of("mobilenet_v3_large", "backbone_weights", weights), None)
    blocks = mobile.features
    channels = [blocks[_C5].block[0].out_channels, blocks[-1].out_channels, *_WIDTHS][: len(sides)]
    backbone = SSDLiteFeatureExtractorMobileNet(blocks, _C5, norm)
    backbone.features = backbone.features[: len(sides)]
    backbone.extra = backbone.extra[: max(0, len(sides) - 2)]
    head = SSDLiteHead(channels, [boxes] * len(sides), num_classes + 1, norm)
    for place, side in enumerate(sides):
        if side > 1:
            continue
        for part in (head.classification_head, head.regression_head):
            _norm_of_one(part.module_list[place])
        _norm_of_one(backbone.extra[place - 2] if place > 1 else backbone.features[place])
    return backbone, head


def _norm_of_one(layers: nn.Module) -> None:
    """A single image alone has no statistics of a map of one pixel: it takes the running ones."""
    for name, layer in list(layers.named_modules()):
        if isinstance(layer, nn.BatchNorm2d):
            layers.set_submodule(name, PooledNorm.of(layer))
