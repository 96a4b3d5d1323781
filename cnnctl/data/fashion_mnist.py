"""Fashion-MNIST: 70,000 grey 28 x 28 pictures of clothes in MNIST's file format.

Xiao, Rasul, Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning
algorithms", arXiv:1708.07747, 2017.
"""

from __future__ import annotations

from cnnctl.data.mnist import MNIST


class FashionMNIST(MNIST):
    """Arguments, splits and checks are MNIST's; the folder is FashionMNIST/raw."""

    classes = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    mean = (0.2860,)  # of the official training images, pixels scaled to 0..1
    std = (0.3530,)
    mirror = True
    source = "FashionMNIST"
