"""Inception v3 against torchvision's."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import Inception_V3_Weights, get_model

from cnnctl.engine.layers import layer_table
from cnnctl.models import published_classifiers
from cnnctl.models.inception_v3 import InceptionV3
from cnnctl.structures import Images, Targets

SIZE = (75, 75)
# Table 1's input sizes: 149, 147, 147, 73, 71, 35, 17, 8.
MAPS = {
    "Conv2d_1a_3x3.conv": (32, 149, 149),
    "Conv2d_2a_3x3.conv": (32, 147, 147),
    "Conv2d_2b_3x3.conv": (64, 147, 147),
    "maxpool1": (64, 73, 73),
    "Conv2d_4a_3x3.conv": (192, 71, 71),
    "maxpool2": (192, 35, 35),
    "Mixed_5d.branch_pool.conv": (64, 35, 35),
    "Mixed_6e.branch_pool.conv": (192, 17, 17),
    "Mixed_7c.branch_pool.conv": (192, 8, 8),
    "fc": (1000,),
}


def test_maps_and_parameters():
    with torch.device("meta"):
        ours, without = InceptionV3(3, 1000, (299, 299)), InceptionV3(3, 1000, (299, 299), 0.0)
        theirs = get_model("inception_v3", init_weights=False)
    own = ours.state_dict()
    assert {k: v.shape for k, v in own.items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    published = Inception_V3_Weights.IMAGENET1K_V1.value.meta["num_params"]
    assert sum(p.numel() for p in ours.parameters()) == published == 27_161_264
    # The paper: "less than 25 million".
    assert sum(p.numel() for p in without.parameters()) == 23_834_568
    table = layer_table(ours, 3, (299, 299))
    shapes = {row.name: row.shape for row in table.rows}
    assert {name: shapes[name] for name in MAPS} == MAPS
    assert table.flops / 2 == pytest.approx(5.7e9, rel=0.01)  # the paper: 5 billion


def test_published_weights_say_the_same(monkeypatch):
    """Its first convolution has no padding, so taking other pixels costs nothing."""
    torch.manual_seed(0)
    options = {"init_weights": False, "transform_input": True, "aux_logits": False}
    theirs = get_model("inception_v3", num_classes=1000, **options).eval()
    monkeypatch.setattr(published_classifiers, "published_weights", lambda _: theirs.state_dict())
    ours = InceptionV3(3, 1000, SIZE, 0.0, weights="IMAGENET1K_V1").eval()
    pixels = torch.randn(1, 3, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels), theirs(pixels), rtol=1e-4, atol=1e-5)
    assert ours.rebuilt == ()


def test_the_auxiliary_head_weighs_four_tenths():
    with torch.device("meta"):
        model = InceptionV3(3, 5, (299, 299))
        images = Images(torch.zeros(1, 3, 299, 299), [(299, 299)], [(299, 299)])
        targets = Targets(torch.arange(1), torch.tensor([2]))
        assert list(model.train().loss(images, targets)) == ["cross_entropy", "auxiliary1"]
        assert list(model.eval().loss(images, targets)) == ["cross_entropy"]
    assert model.auxiliary == 0.4


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "size", "share"), [(1, (80, 90), 0.0), (3, (299, 299), 0.4)])
def test_contract(check, channels, size, share):
    torch.manual_seed(0)
    check(InceptionV3(channels, 5, size, share), channels, size, 5)


def test_refuses():
    with pytest.raises(ValueError, match="v3 needs images of at least 75 x 75, got 74 x 99"):
        InceptionV3(3, 10, (74, 99), 0.0)
    with pytest.raises(ValueError, match=r"\(auxiliary=0 has none\) needs .* at least 299 x 299"):
        InceptionV3(3, 10, (298, 320))
    with pytest.raises(ValueError, match="auxiliary must be at least 0, got -1"):
        InceptionV3(3, 10, SIZE, -1)
