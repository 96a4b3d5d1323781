"""DeconvNet: the paper's size, every size of image, crops around objects."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cnnctl.models.base import GradientStage
from cnnctl.models.deconvnet import DeconvNet, around_objects
from cnnctl.structures import Batch, Images, Targets


def small(**options) -> DeconvNet:
    torch.manual_seed(0)
    return DeconvNet(2, 3, (32, 32), width=1 / 32, fc=5, **options)


def test_parameters_of_the_paper():
    """About 252 M (section 3.2's network, table 2), with a bias for each of the 29 normalised."""
    with torch.device("meta"):
        model = DeconvNet(3, 21, (224, 224))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 29
    normalised = sum(norm.num_features for norm in norms)
    encoder = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), *[(256, 256)] * 2]
    encoder += [(256, 512), *[(512, 512)] * 5]
    decoder = [*[(512, 512)] * 5, (512, 256), *[(256, 256)] * 2, (256, 128), (128, 128)]
    decoder += [(128, 64), (64, 64), (64, 64)]
    weights = sum(9 * a * b for a, b in encoder + decoder)
    weights += 2 * 49 * 512 * 4096 + 4096 * 4096 + (64 + 1) * 21
    found = sum(p.numel() for p in model.parameters())
    assert found == weights + 2 * normalised
    assert round((found + normalised) / 1e6) == 252


def test_at_224_fc6_sees_all_and_table_2_holds():
    with torch.device("meta"):
        model = DeconvNet(3, 21, (224, 224)).eval()
        shapes = []
        for layer in (*model.down, model.dense[0], model.dense[3], model.dense[6], *model.up):
            layer.register_forward_hook(lambda m, i, out: shapes.append(tuple(out.shape[1:3])))
        assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 21, 224, 224)
    down = [(64, 224), (128, 112), (256, 56), (512, 28), (512, 14)]
    up = [(512, 14), (256, 28), (128, 56), (64, 112), (64, 224)]
    assert shapes == [*down, (4096, 1), (4096, 1), (512, 7), *up]


def test_output_size_is_input_size():
    model = small().eval()
    with torch.inference_mode():
        for side in range(1, 71):
            for shape in ((side, side), (side, 71 - side)):
                assert model(torch.zeros(1, 2, *shape)).shape == (1, 3, *shape)
        assert model(torch.zeros(1, 2, 260, 230)).shape == (1, 3, 260, 230)


def test_a_row_does_not_depend_on_the_others():
    model = small().eval()
    pixels = torch.randn(3, 2, 40, 33)
    with torch.inference_mode():
        torch.testing.assert_close(model(pixels)[1:2], model(pixels[1:2]), rtol=1e-4, atol=1e-5)


# Crops around objects.


def scene(mask: list[list[int]], number: int = 0, own: tuple[int, int] | None = None) -> Batch:
    """One image whose two channels are the row and the column of each pixel's centre."""
    truth = torch.tensor(mask, dtype=torch.uint8)[None]
    h, w = truth.shape[1:]
    y, x = torch.arange(h) + 0.5, torch.arange(w) + 0.5
    pixels = torch.stack([y[:, None].expand(h, w), x.expand(h, w)])[None]
    size = own or (h, w)
    return Batch(Images(pixels, [size], [size]), Targets(torch.tensor([number]), mask=truth))


def square(side: int, *boxes: tuple[int, int, int, int, int]) -> list[list[int]]:
    mask = torch.zeros(side, side, dtype=torch.int64)
    for label, top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = label
    return mask.tolist()


def masked(batch: Batch) -> Tensor:
    assert batch.targets.mask is not None
    return batch.targets.mask


def test_the_box_is_enlarged_around_its_centre():
    """Rows 5 to 15 and columns 10 to 15 become 4 to 16 and 9.5 to 15.5, of image and mask."""
    cut = around_objects(scene(square(20, (3, 5, 10, 15, 15))), (24, 12))
    y, x = 4 + (torch.arange(24) + 0.5) / 2, 9.5 + (torch.arange(12) + 0.5) / 2
    torch.testing.assert_close(cut.images.pixels[0, 0], y[:, None].expand(24, 12))
    torch.testing.assert_close(cut.images.pixels[0, 1], x.expand(24, 12))
    inside = ((y > 5) & (y < 15))[:, None] & ((x > 10) & (x < 15))
    assert torch.equal(masked(cut)[0], inside.byte() * 3)
    assert (cut.images.sizes, cut.images.originals) == ([(24, 12)], [(24, 12)])


def test_only_the_object_stays_and_void():
    mask = square(10, (1, 1, 1, 9, 9), (2, 5, 5, 9, 9), (255, 2, 2, 3, 3))
    seen = {}
    for number in range(2):  # whose turn it is follows from the image's number
        cut = masked(around_objects(scene(mask, number), (10, 10)))[0]
        kept = set(cut.unique().tolist())
        label = max(kept - {255})
        seen[label] = kept
    assert seen[1] == {0, 1, 255}
    assert seen[2] == {0, 2}


def test_a_box_ends_at_the_image_and_not_in_its_padding():
    """An image of 8 x 8 in a batch of 10 x 10; the object reaches its last row and column."""
    mask = torch.tensor(square(10, (1, 3, 3, 8, 8)))
    mask[8:], mask[:, 8:] = 255, 255
    cut = around_objects(scene(mask.tolist(), own=(8, 8)), (11, 11))
    edge = (2.5 + (torch.arange(11) + 0.5) / 2).clamp(max=7.5)  # the last row's centre
    torch.testing.assert_close(cut.images.pixels[0, 0, :, 0], edge)
    assert 255 not in masked(cut)


def test_without_an_object_the_image_is_whole():
    cut = around_objects(scene(square(6, (255, 0, 0, 2, 2))), (6, 6))
    whole = scene(square(6, (255, 0, 0, 2, 2)))
    torch.testing.assert_close(cut.images.pixels, whole.images.pixels)
    assert torch.equal(masked(cut), masked(whole))


def test_weights_move_with_their_pixels():
    batch = scene(square(20, (3, 5, 10, 15, 15)))
    batch.targets.pixel_weight = masked(batch) / 3 + 1
    cut = around_objects(batch, (24, 12))
    assert cut.targets.pixel_weight is not None
    torch.testing.assert_close(cut.targets.pixel_weight, masked(cut) / 3 + 1)


def test_both_stages_train_everything():
    model = small(staged=True)
    mask = torch.randint(0, 3, (2, 48, 40), generator=torch.Generator().manual_seed(0)).byte()
    images = Images(torch.randn(2, 2, 48, 40), [(48, 40)] * 2, [(48, 40)] * 2)
    batch = Batch(images, Targets(torch.arange(2), mask=mask))
    assert [stage.name for stage in model.stages()] == ["objects", "images"]
    for stage in model.stages():
        assert isinstance(stage, GradientStage)
        view = stage.view(batch)
        size = (32, 32) if stage.name == "objects" else (48, 40)
        assert view.images.pixels.shape == (2, 2, *size)
        model.zero_grad()
        stage.loss(view.images, view.targets)["cross_entropy"].backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
    assert [stage.name for stage in small().stages()] == ["train"]


@pytest.mark.slow
def test_overfits_eight_images():
    torch.manual_seed(0)
    model = DeconvNet(1, 3, (64, 64), width=1 / 8, fc=64)
    coarse = torch.randint(0, 3, (8, 1, 5, 5)).float()
    mask = nn.functional.interpolate(coarse, (64, 64), mode="nearest")[:, 0].byte()
    images = Images(mask[:, None] - 1.0, [(64, 64)] * 8, [(64, 64)] * 8)
    targets = Targets(torch.arange(8), mask=mask)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(120):
        optimizer.zero_grad()
        model.loss(images, targets)["cross_entropy"].backward()
        optimizer.step()
    with torch.no_grad():
        predicted = model.eval().predict(images).mask
    assert predicted is not None
    assert (predicted == mask).float().mean() > 0.97


def test_refuses():
    with pytest.raises(ValueError, match="width must be positive, got -1"):
        DeconvNet(3, 21, (64, 64), width=-1)
    with pytest.raises(ValueError, match="fc must be at least 1, got 0"):
        DeconvNet(3, 21, (64, 64), fc=0)
