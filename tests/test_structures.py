"""Batches in columns: collate, split, move."""

import pytest
import torch

from cnnctl.structures import Batch, Images, Targets, collate


def image(h: int, w: int, value: int) -> torch.Tensor:
    return torch.full((3, h, w), value, dtype=torch.uint8)


def detection_batch() -> Batch:
    """Four images with 0, 1, 2 and 3 boxes."""
    pixels = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 3, 2, 2)
    images = Images(pixels, [(2, 2)] * 4, [(8, k) for k in range(4)])
    labels = torch.tensor([[-1, -1, -1], [1, -1, -1], [2, 2, -1], [3, 3, 3]])
    boxes = labels.clamp(min=0)[:, :, None].expand(-1, -1, 4).float()
    targets = Targets(torch.arange(4), mask=torch.zeros(4, 2, 2), boxes=boxes, labels=labels)
    return Batch(images, targets)


def test_collate_stacks_images_of_one_size():
    batch = collate([(7, image(2, 3, 1), {"label": 4}), (9, image(2, 3, 2), {"label": 0})])
    assert batch.images.pixels.dtype == torch.uint8
    assert batch.images.pixels[:, 0, 0, 0].tolist() == [1, 2]
    assert batch.images.sizes == batch.images.originals == [(2, 3), (2, 3)]
    assert batch.targets.image_id.tolist() == [7, 9]
    assert batch.targets.label is not None
    assert batch.targets.label.dtype == torch.int64
    assert batch.targets.label.tolist() == [4, 0]
    assert len(batch) == 2


def test_collate_pads_images_of_many_sizes_with_zeros():
    batch = collate([(0, image(2, 5, 9), {"label": 1}), (1, image(4, 3, 8), {"label": 1})])
    pixels = batch.images.pixels
    assert pixels.shape == (2, 3, 4, 5)
    assert pixels.sum((1, 2, 3)).tolist() == [3 * 2 * 5 * 9, 3 * 4 * 3 * 8]
    assert (pixels[0, :, :2, :5] == 9).all()
    assert (pixels[1, :, :4, :3] == 8).all()
    assert batch.images.sizes == [(2, 5), (4, 3)]


def test_collate_keeps_the_size_before_a_resize():
    samples = [(k, image(2, 2, k), {"label": 0, "original": (10 * k, 7)}) for k in range(3)]
    assert collate(samples).images.originals == [(0, 7), (10, 7), (20, 7)]


def test_collate_fills_up_boxes_with_rows_that_are_none():
    samples = [
        (
            k,
            image(2, 2, k),
            {
                "boxes": torch.ones(k, 4),
                "labels": torch.full((k,), 3),
                "crowd": torch.ones(k, dtype=torch.bool),
                "area": torch.full((k,), 2.5),
            },
        )
        for k in range(3)
    ]
    targets = collate(samples).targets
    assert targets.labels is not None
    assert targets.labels.tolist() == [[-1, -1], [3, -1], [3, 3]]
    assert targets.boxes is not None
    assert targets.boxes.shape == (3, 2, 4)
    assert targets.boxes.sum((1, 2)).tolist() == [0, 4, 8]
    assert targets.crowd is not None
    assert targets.crowd.tolist() == [[False, False], [True, False], [True, True]]
    assert targets.area is not None
    assert targets.area.tolist() == [[0, 0], [2.5, 0], [2.5, 2.5]]
    assert targets.label is None


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_split_and_rejoin(parts):
    batch = detection_batch()
    pieces = list(batch.split(parts))
    assert [len(piece) for piece in pieces] == [4 // parts] * parts
    assert torch.equal(torch.cat([p.images.pixels for p in pieces]), batch.images.pixels)
    assert torch.equal(torch.cat([p.targets.image_id for p in pieces]), batch.targets.image_id)
    assert [size for p in pieces for size in p.images.originals] == batch.images.originals
    labels = torch.cat([p.targets.labels for p in pieces if p.targets.labels is not None])
    assert (labels >= 0).sum(1).tolist() == [0, 1, 2, 3]
    assert all(piece.targets.label is None for piece in pieces)
    assert all(piece.targets.area is None for piece in pieces)


@pytest.mark.parametrize("parts", [3, 5, 8])
def test_a_split_that_would_leave_images_out_is_refused(parts):
    with pytest.raises(ValueError, match=f"a batch of 4 does not divide into {parts} equal parts"):
        list(detection_batch().split(parts))


def test_moving_reaches_every_tensor_and_keeps_the_rest():
    batch = detection_batch()
    moved = batch.to(torch.device("meta"))
    tensors = [moved.images.pixels, moved.targets.image_id, moved.targets.mask]
    tensors += [moved.targets.boxes, moved.targets.labels]
    assert all(tensor is not None and tensor.device.type == "meta" for tensor in tensors)
    assert moved.images.originals == batch.images.originals
    assert moved.targets.label is None
    assert batch.images.pixels.device.type == "cpu"
