"""Windows, shared or one by one, against each other and against tables worked by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cnnctl.engine.layers import layer_table
from cnnctl.models.base import GradientStage
from cnnctl.models.sliding_window import SlidingWindow, drawn
from cnnctl.structures import Batch, Images, Targets


def small(**changed) -> SlidingWindow:
    torch.manual_seed(0)
    own = {"patch": 15, "widths": (4, 6), "kernels": (4, 3), "dense": (8,), "per_image": 5}
    return SlidingWindow(2, 3, **{**own, **changed}).eval()


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def batch(mask: Tensor, channels: int = 2, sizes=None, weight: Tensor | None = None) -> Batch:
    n, h, w = mask.shape
    sizes = sizes or [(h, w)] * n
    images = Images(noise(n, channels, h, w), sizes, sizes)
    return Batch(images, Targets(torch.arange(n) + 40, mask=mask, pixel_weight=weight))


@pytest.mark.parametrize("border", ["mirror", "zero"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (6, 5), (8, 8), (17, 12)])
def test_shared_computation_gives_the_scores_of_single_windows(size, border):
    model = small(border=border)
    pixels = noise(2, 2, *size)
    with torch.no_grad():
        shared = model(pixels)
        model.shared = False
        single = model(pixels)
    assert shared.shape == (2, 3, *size)
    torch.testing.assert_close(shared, single, rtol=1e-4, atol=1e-4)
    assert shared.abs().max() > 0.01


def test_a_score_sees_its_window():
    table = layer_table(small(), 2, (20, 20))
    assert [row.field for row in table.rows][-1] == (15, 15)


def test_layers_that_leave_a_line_over_share_too():
    model = small(patch=17, kernels=(3, 4))  # 17 -> 15 -> 7 -> 4 -> 2
    pixels = noise(1, 2, 9, 10)
    with torch.no_grad():
        shared = model(pixels)
        model.shared = False
        torch.testing.assert_close(shared, model(pixels), rtol=1e-4, atol=1e-4)


def test_a_score_is_that_of_the_window_cut_out_and_classified():
    model = small()
    pixels = noise(1, 2, 20, 20)
    with torch.no_grad():
        alone = model.classify(pixels[:, :, 2:17, 4:19])[0, :, 0, 0]
        torch.testing.assert_close(model(pixels)[0, :, 9, 11], alone, rtol=1e-4, atol=1e-5)


def test_one_by_one_works_in_chunks(monkeypatch):
    model = small(shared=False)
    pixels = noise(1, 2, 7, 6)
    with torch.no_grad():
        whole = model(pixels)
        monkeypatch.setattr("cnnctl.models.sliding_window.CHUNK", 5 * 4 * 15**2)  # five windows
        torch.testing.assert_close(model(pixels), whole)


def test_the_papers_network():
    """Ciresan et al., table 1: maps of 92, 46, 42, 21, 18, 9, 6 and 3 pixels a side."""
    with torch.device("meta"):
        model = SlidingWindow(1, 2, 95, (48, 48, 48, 48), (4, 5, 4, 4), (200,))
        maps, sides = torch.zeros(1, 1, 95, 95), []
        for conv in model.convs:
            maps = conv(maps)
            sides.append(maps.shape[-1])
            maps = model.pool(maps)
            sides.append(maps.shape[-1])
    assert sides == [92, 46, 42, 21, 18, 9, 6, 3]
    # 16 * 48 + 48, 25 * 48^2 + 48, twice 16 * 48^2 + 48, 9 * 48 * 200 + 200, 200 * 2 + 2
    expected = 816 + 57648 + 2 * 36912 + 86600 + 402
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize("border", ["mirror", "zero"])
def test_training_windows_are_those_of_the_scores(border):
    """Their logits are those of their pixels, also at the border of an image in a larger batch."""
    model = small(border=border, per_image=40)
    mask = torch.randint(0, 3, (2, 11, 10), generator=torch.Generator().manual_seed(2)).byte()
    mask[1, 8:], mask[1, :, 6:] = 255, 255
    given = batch(mask, sizes=[(11, 10), (8, 6)], weight=torch.rand(2, 11, 10))
    torch.manual_seed(3)
    chosen = drawn(mask, 40, True)
    torch.manual_seed(3)
    view = model.windows(given)
    assert view.images.pixels.shape == (80, 2, 15, 15)
    assert view.targets.mask is not None
    assert view.targets.mask.shape == (80, 1, 1)
    assert view.targets.image_id.tolist() == [40] * 40 + [41] * 40
    assert given.targets.pixel_weight is not None
    with torch.no_grad():
        logits = model.classify(view.images.pixels)[:, :, 0, 0].view(2, 40, 3)
        for row, (h, w) in enumerate(given.images.sizes):
            y, x = chosen[row] // 10, chosen[row] % 10
            dense = model(given.images.pixels[row : row + 1, :, :h, :w])[0]
            torch.testing.assert_close(logits[row], dense[:, y, x].T, rtol=1e-4, atol=1e-4)
            own = slice(40 * row, 40 * row + 40)
            assert torch.equal(view.targets.mask[own, 0, 0], mask[row, y, x])
            weight = view.targets.pixel_weight
            assert weight is not None
            assert torch.equal(weight[own, 0, 0], given.targets.pixel_weight[row, y, x])


def test_the_same_seed_draws_the_same_windows():
    model, given = small(), batch(torch.zeros(1, 9, 9).byte())
    torch.manual_seed(5)
    first = model.windows(given).images.pixels
    assert not torch.equal(model.windows(given).images.pixels, first)
    torch.manual_seed(5)
    assert torch.equal(model.windows(given).images.pixels, first)


@pytest.mark.parametrize("balanced", [False, True])
def test_what_is_drawn(balanced):
    """60 pixels of class 0, 20 of class 2, the rest void; then an image with no label at all."""
    mask = torch.full((2, 10, 10), 255).byte()
    mask[0].flatten()[:60], mask[0].flatten()[80:] = 0, 2
    torch.manual_seed(0)
    chosen = drawn(mask, 4000, balanced)
    classes = mask.flatten(1).gather(1, chosen)
    assert set(classes[0].tolist()) == {0, 2}
    share = (classes[0] == 2).float().mean().item()
    assert share == pytest.approx(0.5 if balanced else 0.25, abs=0.03)
    assert len(set(chosen[0].tolist())) == 80
    assert set(classes[1].tolist()) == {255}


def test_the_stages_loss_is_cross_entropy_of_the_centres():
    model = small()
    mask = torch.randint(0, 3, (2, 8, 8), generator=torch.Generator().manual_seed(2)).byte()
    (stage,) = model.stages()
    assert isinstance(stage, GradientStage)
    view = stage.view(batch(mask))
    losses = stage.loss(view.images, view.targets)
    assert view.targets.mask is not None
    logits = model.classify(view.images.pixels).flatten(1)
    expected = F.cross_entropy(logits, view.targets.mask.flatten().long())
    torch.testing.assert_close(losses, {"cross_entropy": expected})
    halves = list(view.split(2))
    parts = [stage.loss(half.images, half.targets)["cross_entropy"] for half in halves]
    torch.testing.assert_close(torch.stack(parts).mean(), expected)


def test_images_without_a_label_have_no_loss():
    model = small()
    view = model.windows(batch(torch.full((2, 8, 8), 255).byte()))
    loss = model.window_loss(view.images, view.targets)["cross_entropy"]
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_learns_which_half_is_bright():
    torch.manual_seed(0)
    model = SlidingWindow(1, 2, 5, (4,), (2,), (8,), per_image=32)
    mask = torch.zeros(2, 12, 12).byte()
    mask[0, :, 6:], mask[1, 5:] = 1, 1
    given = batch(mask, 1)
    given.images.pixels = given.images.pixels * 0.1 + mask[:, None]
    (stage,) = model.stages()
    assert isinstance(stage, GradientStage)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        view = stage.view(given)
        optimizer.zero_grad()
        stage.loss(view.images, view.targets)["cross_entropy"].backward()
        optimizer.step()
    with torch.no_grad():
        found = model.predict(given.images).mask
    assert found is not None
    assert (found == mask).float().mean() > 0.95


def test_refuses():
    with pytest.raises(ValueError, match="patch must be odd, so that a pixel is its centre, got 8"):
        small(patch=8)
    with pytest.raises(ValueError, match="as long, got 2 and 1"):
        small(kernels=(3,))
    with pytest.raises(ValueError, match=r"a patch of 7 is too small for the kernels \[4, 3\]"):
        small(patch=7)
    with pytest.raises(ValueError, match="must be at least 1"):
        small(per_image=0)
    with pytest.raises(ValueError, match='border must be "mirror" or "zero", got "wrap"'):
        small(border="wrap")
