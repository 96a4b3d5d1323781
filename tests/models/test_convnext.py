"""ConvNeXt against torchvision's and table 1 of the paper."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import get_model

from cnnctl.engine.layers import layer_table
from cnnctl.models.convnext import ConvNeXt

SIZE = (224, 224)


# Table 1: 29, 50, 89 million parameters, 4.5, 8.7, 15.4 billion multiply-adds.
@pytest.mark.parametrize(
    ("variant", "parameters", "giga"),
    [("tiny", 28_589_128, 4.5), ("small", 50_223_688, 8.7), ("base", 88_591_464, 15.4)],
)
def test_parameters_and_operations_of_table_1(variant, parameters, giga):
    with torch.device("meta"):
        model = ConvNeXt(3, 1000, SIZE, variant)
        table = layer_table(model, 3, SIZE)
        theirs = get_model(f"convnext_{variant}").state_dict()
    assert table.parameters == parameters
    assert round(table.flops / 2e9, 1) == giga
    assert {name: v.shape for name, v in model.state_dict().items()} == {
        name: v.shape for name, v in theirs.items()
    }


def test_gives_torchvisions_scores(check):
    torch.manual_seed(0)
    ours = ConvNeXt(1, 5, (32, 40))
    check(ours, 1, (32, 40), 5)
    with torch.device("meta"):
        theirs = get_model("convnext_tiny", num_classes=5).eval()
    theirs.load_state_dict(
        {
            k: v.expand(-1, 3, -1, -1) / 3 if k == "features.0.0.weight" else v
            for k, v in ours.state_dict().items()
        },
        assign=True,
    )
    pixels = torch.randn(1, 1, 32, 40)
    with torch.no_grad():
        expected = theirs(pixels.expand(-1, 3, -1, -1))
        torch.testing.assert_close(ours.eval()(pixels), expected, rtol=1e-4, atol=1e-5)


def test_refuses():
    with pytest.raises(ValueError, match="ConvNeXt needs images of at least 32 x 32, got 28 x 28"):
        ConvNeXt(3, 10, (28, 28))
    with pytest.raises(ValueError, match='variant must be tiny, small or base, got "large"'):
        ConvNeXt(3, 10, SIZE, "large")  # pyright: ignore[reportArgumentType]
