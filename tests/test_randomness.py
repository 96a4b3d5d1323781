"""Counter randomness: pure, well spread, independent of everything that is not its counter."""

import pytest
import torch
from scipy import stats

from cnnctl.randomness import Draw, beta_quantiles, key, permutation

MANY = 20_000


def draw(seed: int = 0, epoch: int = 0, index: torch.Tensor | None = None) -> Draw:
    return Draw(seed, epoch, torch.arange(MANY) if index is None else index)


def test_a_draw_is_a_pure_function_of_its_counter():
    whole = draw().uniform("crop", 3)
    assert torch.equal(draw().uniform("crop", 3), whole)
    order = torch.randperm(MANY, generator=torch.Generator().manual_seed(1))
    assert torch.equal(draw(index=order).uniform("crop", 3), whole[order])
    assert torch.equal(draw(index=torch.tensor([7])).uniform("crop", 3), whole[7:8])
    assert torch.equal(draw().uniform("crop", 1), whole[:, :1])  # more numbers change none


def test_the_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = draw().uniform("crop"), permutation(10, 3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(draw().uniform("crop"), first[0])
    assert torch.equal(permutation(10, 3), first[1])


def test_the_numbers_stay_what_they_are():
    """A changed stream would silently change every run that is resumed or repeated."""
    assert key(0, "crop", 0) == 5447248634514351689
    assert key("a", 1) != key("a1") != key("a", "1")
    found = Draw(0, 0, torch.tensor([0, 1, 49_999])).uniform("crop", 2)
    expected = [[16218936, 6385948], [13942219, 1677159], [3881057, 12331029]]
    assert (found * 2**24).long().tolist() == expected


@pytest.mark.parametrize("column", [0, 1, 5])
def test_uniform_numbers_are_uniform(column):
    numbers = draw().uniform("crop", 6)[:, column]
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert stats.kstest(numbers.numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    "other",
    [
        lambda: draw().uniform("crop", 2)[:, 1],
        lambda: draw().uniform("flip")[:, 0],
        lambda: draw(seed=1).uniform("crop")[:, 0],
        lambda: draw(epoch=1).uniform("crop")[:, 0],
        lambda: draw(index=torch.arange(1, MANY + 1)).uniform("crop")[:, 0],
        lambda: draw(index=torch.arange(MANY) + 2**33).uniform("crop")[:, 0],
    ],
    ids=["column", "purpose", "seed", "epoch", "next index", "far index"],
)
def test_streams_are_independent(other):
    first, second = draw().uniform("crop")[:, 0], other()
    correlation = torch.corrcoef(torch.stack([first, second]))[0, 1]
    assert abs(correlation) < 4 / MANY**0.5
    cells = (first * 8).long() * 8 + (second * 8).long()
    assert stats.chisquare(torch.bincount(cells, minlength=64).numpy()).pvalue > 1e-3


def test_no_two_samples_share_their_numbers():
    rows = draw(index=torch.arange(200_000)).uniform("crop", 2).double()
    assert len((rows[:, 0] * 2**24 + rows[:, 1]).unique()) == 200_000


@pytest.mark.parametrize("below", [1, 2, 9, 14])
def test_integers_are_uniform(below):
    numbers = draw().integers("crop", below, 2)
    assert numbers.dtype == torch.int64
    counts = torch.bincount(numbers.flatten(), minlength=below)
    assert len(counts) == below
    assert below == 1 or stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_chance():
    assert not draw().chance("flip", 0.0).any()
    assert draw().chance("flip", 1.0).all()
    hits = int(draw().chance("flip", 0.3).sum())
    assert stats.binomtest(hits, MANY, 0.3).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.4, 1.0, 2.0, 8.0, 200.0])
def test_quantiles_make_a_beta(alpha):
    numbers = draw().quantile("mixup", beta_quantiles(alpha))
    assert numbers.min() >= 0
    assert numbers.max() <= 1
    exact = stats.beta(alpha, alpha)
    edges = exact.ppf([k / 20 for k in range(1, 20)])
    edges = edges[(edges > 1e-6) & (edges < 1 - 1e-6)]  # further out single precision has ties
    counts = torch.bincount(torch.bucketize(numbers.double(), torch.from_numpy(edges)))
    shares = torch.tensor([0.0, *exact.cdf(edges), 1.0], dtype=torch.float64).diff()
    assert len(edges) > 10
    assert stats.chisquare(counts.numpy(), (shares * MANY).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [1e-3, 0.2, 1.0, 8.0, 1e4])
def test_beta_quantiles_are_rising_symmetric_and_close_between_their_points(alpha):
    table = beta_quantiles(alpha).double()
    assert (table.diff() >= 0).all()
    assert torch.allclose(table + table.flip(0), torch.ones_like(table), atol=1e-6)
    middle = torch.arange(1, len(table) - 2).double() + 0.5
    exact = stats.beta(alpha, alpha).ppf((middle / (len(table) - 1)).numpy())
    between = (table[1:-2] + table[2:-1]) / 2
    # steepest in the outermost steps of a narrow Beta, where one draw in 30,000 falls
    assert torch.allclose(between, torch.from_numpy(exact), atol=5e-3)


def test_permutations():
    first = permutation(1000, 0, "order", 0)
    assert first.sort().values.tolist() == list(range(1000))
    assert torch.equal(permutation(1000, 0, "order", 0), first)
    assert not torch.equal(permutation(1000, 0, "order", 1), first)
    assert permutation(0, 1).tolist() == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_numbers_are_the_same_on_a_gpu():
    there = draw(index=torch.arange(MANY, device="cuda")).uniform("crop", 2)
    assert torch.equal(there.cpu(), draw().uniform("crop", 2))
