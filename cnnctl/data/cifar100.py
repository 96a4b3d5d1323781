"""CIFAR-100: 60,000 colour 32 x 32 images of a hundred classes.

Krizhevsky, "Learning multiple layers of features from tiny images", 2009. A record of the binary
archive has two labels, of the twenty coarse and of the hundred fine classes; the fine is used.
"""

from __future__ import annotations

from cnnctl.data.cifar10 import CIFAR10

_FINE = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house
kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew
skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf
woman worm
"""


class CIFAR100(CIFAR10):
    """Arguments, splits and checks are CIFAR-10's; the class is the fine label."""

    classes = tuple(_FINE.split())
    mean = (0.5071, 0.4865, 0.4409)  # of the official training images, pixels scaled to 0..1
    std = (0.2673, 0.2564, 0.2762)

    source = "CIFAR100"
    binary = "cifar-100-binary"
    train_files = ("train.bin",)
    test_files = ("test.bin",)
    images_in_file = {"train": 50_000, "test": 10_000}  # noqa: RUF012
    label_bytes = 2
    label_key = "fine_labels"
    archive = "cifar-100-binary.tar.gz"
    archive_md5 = "03b5dce01913d631647c71ecec9e9cb8"
