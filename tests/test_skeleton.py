"""Skeletons: what is refused, mirrors, and the way through a checkpoint."""

import dataclasses

import pytest

from cnnctl.skeleton import Skeleton

THREE = Skeleton(("nose", "left", "right"), ((0, 1), (0, 2)), ((1, 2),), (0.1, 0.2, 0.2), (1, 2))


def test_a_mirror_exchanges_left_and_right():
    assert THREE.mirrored().tolist() == [0, 2, 1]
    assert len(THREE) == 3


def test_it_comes_back_from_plain_values():
    plain = THREE.plain()
    as_lists = {key: [list(v) if isinstance(v, tuple) else v for v in plain[key]] for key in plain}
    assert Skeleton.of(as_lists) == THREE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ("a", "a", "b")}, "different names"),
        ({"sigmas": (0.1, 0.1)}, "needs a sigma"),
        ({"sigmas": (0.1, 0.1, 0.0)}, "needs a sigma"),
        ({"swap": ((0, 1), (1, 2))}, "two pairs"),
        ({"sticks": ((0, 3),)}, "numbered 0 to 2"),
        ({"reference": (-1, 0)}, "numbered 0 to 2"),
    ],
)
def test_what_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(THREE, **change)
