"""Segmentation models: scores in original pixels, which do not depend on the batch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cnnctl.models.base import SegmentationModel
from cnnctl.ops.dense import DenseTesting
from cnnctl.ops.losses import SegmentationLoss
from cnnctl.structures import Images, Targets


class Blurred(SegmentationModel):
    """Sees a neighbourhood, zero padding at the border: padded pixels would leak into an image."""

    def __init__(self, heads: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(1, 3, 5, padding=2)
        for parameter in self.conv.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.auxiliary = {"aux": 0.5} if heads > 1 else {}

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.conv(pixels)

    def outputs(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        out = self(pixels)
        return {"out": out, **{name: -out for name in self.auxiliary}}


def padded(*sizes: tuple[int, int], originals=None) -> tuple[Images, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    singles = [torch.randn(1, 1, h, w, generator=generator) for h, w in sizes]
    height, width = (max(side) for side in zip(*sizes, strict=True))
    pixels = torch.full((len(sizes), 1, height, width), 7.0)
    for row, single in zip(pixels, singles, strict=True):
        row[:, : single.shape[2], : single.shape[3]] = single[0]
    return Images(pixels, list(sizes), list(originals or sizes)), singles


@pytest.fixture
def model() -> Blurred:
    return Blurred().eval()


def test_images_of_many_sizes_are_seen_without_their_padding(model):
    images, singles = padded((9, 12), (7, 5), (9, 12), (11, 4))
    with torch.inference_mode():
        found = model.predict(images).mask
        assert found is not None
        assert found.shape == (4, 11, 12)
        assert found.dtype == torch.uint8
        for row, single in zip(found, singles, strict=True):
            expected = model(single).argmax(1)[0]
            h, w = expected.shape
            assert torch.equal(row[:h, :w].long(), expected)
            outside = row.clone()
            outside[:h, :w] = 255
            assert (outside == 255).all()


def test_predictions_are_in_original_pixels(model):
    images, singles = padded((8, 8), (6, 8), originals=[(16, 16), (9, 12)])
    with torch.inference_mode():
        found = model.predict(images).mask
    assert found is not None
    assert found.shape == (2, 16, 16)
    for row, single, (h, w) in zip(found, singles, images.originals, strict=True):
        with torch.inference_mode():
            scores = F.interpolate(model(single), (h, w), mode="bilinear", align_corners=False)
        assert torch.equal(row[:h, :w].long(), scores.argmax(1)[0])
    assert (found[1, 9:] == 255).all()
    assert (found[1, :, 12:] == 255).all()


def test_loss_and_predict_are_loss_and_predict(model):
    images, _ = padded((8, 8), (6, 8), originals=[(16, 16), (9, 12)])
    mask = torch.full((2, 16, 16), 255, dtype=torch.uint8)
    mask[0], mask[1, :9, :12] = 1, 2
    targets = Targets(torch.arange(2), mask=mask)
    with torch.inference_mode():
        losses, predictions = model.loss_and_predict(images, targets)
        assert predictions.mask is not None
        assert torch.equal(predictions.mask, model.predict(images).mask)
        torch.testing.assert_close(losses, model.loss(images, targets))
        alone = []
        for row in range(2):
            one, h, w = slice(row, row + 1), *images.originals[row]
            single = Images(
                images.pixels[one][..., : images.sizes[row][0], : images.sizes[row][1]],
                images.sizes[one],
                images.originals[one],
            )
            truth = Targets(torch.arange(1), mask=mask[one, :h, :w])
            alone.append(model.loss(single, truth)["cross_entropy"])
    torch.testing.assert_close(losses["cross_entropy"], torch.stack(alone).mean())


def test_auxiliary_heads_count_their_share():
    model = Blurred(heads=2)
    images, _ = padded((5, 6), (5, 6))
    mask = torch.zeros(2, 5, 6, dtype=torch.uint8)
    losses = model.loss(images, Targets(torch.arange(2), mask=mask))
    logits = model(images.pixels)
    expected = {
        "cross_entropy": F.cross_entropy(logits, mask.long()),
        "aux_cross_entropy": 0.5 * F.cross_entropy(-logits, mask.long()),
    }
    torch.testing.assert_close(losses, expected)


def test_pixel_weights_and_void_reach_the_criterion(model):
    images, _ = padded((4, 4), (4, 4))
    mask = torch.randint(0, 3, (2, 4, 4), generator=torch.Generator().manual_seed(2))
    mask[0, 0] = 255
    weight = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(3))
    model.criterion = SegmentationLoss(3, {"cross_entropy": 2.0})
    targets = Targets(torch.arange(2), mask=mask.to(torch.uint8), pixel_weight=weight)
    expected = model.criterion(model(images.pixels), targets.mask, weight)
    torch.testing.assert_close(model.loss(images, targets), expected)


def test_no_labelled_pixel_is_no_loss(model):
    images, _ = padded((4, 4))
    mask = torch.full((1, 4, 4), 255, dtype=torch.uint8)
    loss = model.loss(images, Targets(torch.arange(1), mask=mask))["cross_entropy"]
    loss.backward()
    assert float(loss.detach()) == 0
    assert model.conv.weight.grad is not None
    assert model.conv.weight.grad.abs().sum() == 0


def test_views_are_averaged_where_the_task_asks(model):
    images, singles = padded((8, 9))
    mask = torch.zeros(1, 8, 9, dtype=torch.uint8)
    model.testing = DenseTesting(flip=True)
    with torch.inference_mode():
        losses, predictions = model.loss_and_predict(images, Targets(torch.arange(1), mask=mask))
        both = model(singles[0]).softmax(1) + model(singles[0].flip(3)).softmax(1).flip(3)
        averaged = F.nll_loss((both / 2).log(), mask.long())
    assert predictions.mask is not None
    assert torch.equal(predictions.mask[0].long(), both.argmax(1)[0])
    torch.testing.assert_close(losses["cross_entropy"], averaged)


def test_tiles_are_all_that_the_network_sees():
    class Seen(Blurred):
        largest = 0

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            self.largest = max(self.largest, *pixels.shape[-2:])
            return super().forward(pixels)

    model = Seen().eval()
    model.testing = DenseTesting(tile=16)
    images, _ = padded((40, 50))
    truth = Targets(torch.arange(1), mask=torch.zeros(1, 40, 50, dtype=torch.uint8))
    with torch.inference_mode():
        model.loss_and_predict(images, truth)
        model.predict(images)
    assert model.largest == 16


def test_scores_that_are_no_numbers_are_no_class(model):
    images, _ = padded((4, 5))
    images.pixels[..., 0, 0] = torch.nan
    with torch.inference_mode():
        mask = model.predict(images).mask
    assert mask is not None
    assert (mask[0, :3, :3] == 255).all()
    assert (mask[0, 3:] != 255).all()
