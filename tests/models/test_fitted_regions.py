"""SVMs and box regressors on features of regions: which regions, what is solved, what is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from cnnctl.errors import Exit, UserError
from cnnctl.models import fitted_regions, region_features
from cnnctl.models.detection import Truth
from cnnctl.models.feature_cache import features_folder
from cnnctl.models.fitted_regions import FittedRegions
from cnnctl.models.region_features import RegionFeatures, thinned
from cnnctl.models.region_fitting import Fitting
from cnnctl.ops.boxes import encode
from cnnctl.ops.hard_negatives import Mining, mined_planes
from cnnctl.ops.linear_svm import NEVER
from cnnctl.structures import Batch, Images, Targets

K, SIZE = 2, (40, 40)
TRUTH = torch.tensor([[[0.0, 0, 10, 10], [20, 20, 36, 36]], [[5.0, 5, 25, 25], [0, 0, 0, 0]]])
LABELS = torch.tensor([[0, 1], [1, -1]])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


class Describe:
    """Features of a box that a plane can tell it by; counts the regions that it is asked for."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, images: Images, boxes: Tensor, image: Tensor):
        """In three parts, in no order."""
        self.asked += len(boxes)
        assert image.equal(image.sort().values)
        for rows in torch.randperm(len(boxes)).tensor_split(3):
            yield rows, self.of(images, boxes[rows], image[rows])

    def of(self, images: Images, boxes: Tensor, image: Tensor) -> RegionFeatures:
        fixed = torch.randn(4, 6, generator=torch.Generator().manual_seed(5))
        hidden = (boxes / 20 @ fixed + images.pixels[image].mean((1, 2, 3))[:, None]).sin()
        return RegionFeatures(hidden, torch.cat([hidden, hidden[:, :1] ** 2], 1))


def batch_of(rows: slice = slice(None), columns: slice = slice(None)) -> Batch:
    corner = torch.rand(2, 30, 2, generator=torch.Generator().manual_seed(0)) * 24
    side = torch.rand(2, 30, 2, generator=torch.Generator().manual_seed(1)) * 8 + 8
    proposals = torch.cat([corner, corner + side], 2)
    proposals[:, :6] = TRUTH[:, :1] + torch.tensor([0, 0, 1.0, 0.5]) * torch.arange(6)[:, None]
    proposals[1, 25:] = 0
    pixels = torch.tensor([0.0, 0.3])[:, None, None, None].expand(2, 1, *SIZE)
    images = Images(pixels, [SIZE] * 2, [SIZE] * 2, proposals[:, columns])
    return Batch(images, Targets(torch.arange(2), boxes=TRUTH, labels=LABELS)).rows(rows)


def solved(fitting: Fitting, describe: Describe, images: int | None = 2) -> FittedRegions:
    regions = FittedRegions(K, 6, 7, fitting, ("a", "b"))
    stages = regions.stages(describe, lambda: [torch.ones(1)], "test", lambda: images)
    for stage in stages:
        stage.fit(iter([batch_of(slice(0, 1)), batch_of(slice(1, 2))]))
    return regions


def regions_by_hand() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(boxes, image, own, largest overlap with each class) of the proposals and true boxes."""
    from torchvision.ops import box_iou

    batch, found = batch_of(), []
    assert batch.images.proposals is not None
    for image in range(2):
        own = torch.cat([torch.full((30,), -1), LABELS[image]])
        boxes = torch.cat([batch.images.proposals[image], TRUTH[image]])
        overlap = box_iou(boxes, TRUTH[image]).nan_to_num()
        most = torch.stack([(overlap * (LABELS[image] == kind)).amax(1) for kind in range(K)], 1)
        there = boxes[:, 2] > boxes[:, 0]
        found.append([c[there] for c in (boxes, torch.full_like(own, image), own, most)])
    boxes, image, own, most = (torch.cat(column) for column in zip(*found, strict=True))
    return boxes, image, own, most


def test_svms_are_those_of_the_regions_by_hand():
    boxes, image, own, most = regions_by_hand()
    named = Describe().of(batch_of().images, boxes, image).named.half().numpy()
    planes, biases = mined_planes(named, own.numpy(), (most >= 0.3).numpy(), Mining())
    regions = solved(Fitting(regress=False), Describe())
    assert regions.planes.equal(planes)
    assert regions.biases.equal(biases)
    assert regions.solved
    margins = torch.from_numpy(named).float() @ planes.T + biases
    scores = regions.scores(torch.from_numpy(named))
    torch.testing.assert_close(scores, 1 / (1 + (-margins).exp()))
    assert regions.codes(torch.zeros(3, 7)) is None


def test_regressors_are_ridge_regression_of_the_regions_by_hand():
    boxes, image, own, most = regions_by_hand()
    best, kind = most.max(1)
    chosen = (own < 0) & (best > 0.6)
    placed = Describe().of(batch_of().images, boxes, image).placed[chosen].half().float()
    theirs = torch.stack(
        [TRUTH[i][LABELS[i] == k][0] for i, k in zip(image[chosen], kind[chosen], strict=True)]
    )
    codes = encode(theirs, boxes[chosen])
    scale = 20 / placed.norm(dim=1).mean()
    regions = solved(Fitting(svm=False), Describe())
    said = regions.codes(placed)
    assert said is not None
    for number in range(K):
        rows = kind[chosen] == number
        assert rows.sum() >= 3
        oracle = Ridge(alpha=1000.0).fit((placed[rows] * scale).numpy(), codes[rows].numpy())
        expected = oracle.predict((placed * scale).numpy())
        np.testing.assert_allclose(said[:, number], expected, rtol=1e-3, atol=1e-5)
    assert not regions.solved


def test_what_is_solved_is_in_the_state_dict():
    regions, again = solved(Fitting(), Describe()), FittedRegions(K, 6, 7, Fitting())
    assert not again.solved
    assert again.scores(torch.ones(1, 6)).equal(torch.full((1, K), 0.5))
    again.load_state_dict(regions.state_dict())
    hidden = torch.randn(5, 6)
    assert again.solved
    assert again.scores(hidden).equal(regions.scores(hidden))
    assert not list(regions.parameters())


def test_autocast_rounds_no_margin_and_no_code():
    regions = FittedRegions(K, 6, 7, Fitting())
    generator = torch.Generator().manual_seed(3)
    for name in ("planes", "biases", "regressors", "offsets"):
        regions.get_buffer(name).normal_(generator=generator)
    named, placed = torch.randn(9, 6, generator=generator), torch.randn(9, 7, generator=generator)
    scores, codes = regions.scores(named), regions.codes(placed)
    with torch.autocast("cpu", torch.bfloat16):
        assert regions.scores(named).equal(scores)
        said = regions.codes(placed)
    assert said is not None
    assert codes is not None
    assert said.equal(codes)
    assert scores.dtype == said.dtype == torch.float32


@pytest.mark.parametrize("svm", [True, False])
def test_scores_and_codes_are_put_together_from_parts_in_no_order(svm):
    regions = FittedRegions(K, 6, 7, Fitting())
    regions.planes += torch.randn(K, 6)
    regions.regressors += torch.randn(K, 4, 7)
    regions.solved.fill_(svm)
    named, placed, layer = torch.randn(9, 6), torch.randn(9, 7), torch.nn.Linear(6, K + 1)
    parts = torch.randperm(9).split(4)
    with torch.no_grad():
        scores, codes = regions.said(
            ((rows, RegionFeatures(named[rows], placed[rows])) for rows in parts), layer
        )
        softmax = layer(named).softmax(1)[:, :K]
    torch.testing.assert_close(scores, regions.scores(named) if svm else softmax)
    assert codes is not None
    torch.testing.assert_close(codes, regions.codes(placed))


@pytest.mark.parametrize(("svm", "regress"), [(True, True), (True, False), (False, True)])
def test_stages_and_their_features(svm, regress):
    """The last stage is evaluated, and removes what all of them kept."""
    regions = FittedRegions(K, 6, 7, Fitting(svm=svm, regress=regress))
    stages = regions.stages(Describe(), lambda: [torch.ones(1)], "", lambda: 2)
    assert [stage.name for stage in stages] == ["svm"] * svm + ["boxes"] * regress
    for stage in stages:
        assert stage.evaluate == (stage is stages[-1])
        stage.fit(iter([batch_of()]))
        assert len(list(features_folder().iterdir())) == (stage is not stages[-1])


def test_a_fit_that_was_killed_goes_on_from_its_features(monkeypatch):
    reference, describe = solved(Fitting(), Describe()), Describe()
    regions = FittedRegions(K, 6, 7, Fitting())

    def stages():
        return regions.stages(describe, lambda: [torch.ones(1)], "test", lambda: 2)

    batches = [batch_of(slice(0, 1)), batch_of(slice(1, 2))]

    def killed():
        yield batches[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stages()[0].fit(killed())
    first = describe.asked
    assert first == 32
    stages()[0].fit(iter(batches))
    assert describe.asked == 32 + 26  # the second image alone
    stages()[0].fit(iter(batches))  # evaluated, killed before it was saved
    assert describe.asked == 32 + 26
    for _ in range(2):
        stages()[1].fit(iter(batches))
    assert list(features_folder().iterdir()) == []
    for name, value in reference.state_dict().items():
        assert value.equal(regions.state_dict()[name]), name


def test_other_weights_are_other_features():
    describe = Describe()
    for weights in (torch.ones(1), torch.zeros(1)):
        regions = FittedRegions(K, 6, 7, Fitting())
        stage = regions.stages(describe, lambda w=weights: [w], "test", lambda: 2)[0]
        stage.fit(iter([batch_of()]))
    assert describe.asked == 2 * 58


def test_only_the_first_images():
    describe = Describe()
    solved(Fitting(images=1, regress=False), describe)
    assert describe.asked == 32


def test_the_bound_takes_fewer_regions_and_all_true_boxes(monkeypatch):
    row = 2 * 6 + 2 + K  # bytes: features, class, negatives
    seen = {}
    monkeypatch.setattr(
        fitted_regions,
        "mined_planes",
        lambda rows, own, *_: seen.update(own=np.array(own)) or (torch.zeros(K, 6), torch.zeros(K)),
    )
    with pytest.warns(
        UserWarning, match="at most 10 regions of an image .* model.cache_gb=3.2e-07"
    ):
        solved(Fitting(regress=False, cache_gb=20 * row / 1e9), Describe())
    assert len(seen["own"]) == 20
    assert sorted(seen["own"][seen["own"] >= 0].tolist()) == [0, 1, 1]
    with pytest.raises(UserError, match=r"outgrow model\.cache_gb") as caught:
        solved(Fitting(regress=False, cache_gb=20 * row / 1e9), Describe(), images=None)
    assert caught.value.code == Exit.MACHINE


def test_thinned_is_spread_evenly():
    chosen = torch.tensor([[True] * 8 + [False, True], [True] * 2 + [False] * 8])
    must = torch.tensor([[False] * 9 + [True], [False] * 10])
    kept = thinned(chosen, must, 3)
    assert kept.nonzero().tolist() == [[0, 3], [0, 7], [0, 9], [1, 0], [1, 1]]


def test_the_size_on_the_disk_is_known_before():
    """The larger of both: features of two bytes a number, and what is kept beside them."""
    regions = FittedRegions(K, 100, 400, Fitting())
    svm, boxes = 2 * 100 + 2 + K, 2 * 400 + 2 + 16
    assert regions.disk_needed(10, 200) == max(10 * (200 + 16) * svm, 10 * (50 + 16) * boxes)
    assert FittedRegions(K, 9, 9, Fitting(cache_gb=1e-6)).disk_needed(10**6, 2000) == 1000
    assert FittedRegions(K, 9, 9, Fitting(svm=False, regress=False)).disk_needed(10, 10) == 0
    few = FittedRegions(K, 100, 400, Fitting(images=5))
    assert few.disk_needed(10, 200) == few.disk_needed(5, 200)


def test_a_full_disk_is_found_out_before_the_network_runs(monkeypatch):
    describe = Describe()

    def none_left(folder, needed):
        assert needed == 2 * (30 + 16) * (2 * 6 + 2 + K)
        raise UserError("full", code=Exit.MACHINE)

    monkeypatch.setattr(region_features, "require_space", none_left)
    with pytest.raises(UserError):
        solved(Fitting(), describe)
    assert describe.asked == 0


def test_regions_of_no_use_at_all():
    """No proposals, no truth: nothing is solved, nothing breaks, nothing is ever said."""
    regions = FittedRegions(K, 6, 7, Fitting())
    batch = batch_of(columns=slice(0, 0))
    batch.targets.boxes, batch.targets.labels = TRUTH[:, :0], LABELS[:, :0]
    stages = regions.stages(Describe(), lambda: [torch.ones(1)], "", lambda: 2)
    with pytest.warns(UserWarning, match="0, 1 .* they are never found"):
        stages[0].fit(iter([batch]))
    stages[1].fit(iter([batch]))
    assert regions.biases.equal(torch.full((K,), NEVER))
    assert not regions.scores(torch.randn(4, 6)).any()
    codes = regions.codes(torch.randn(4, 7))
    assert codes is not None
    assert not codes.any()


def test_negatives_and_near_regions_by_hand():
    regions = FittedRegions(K, 6, 7, Fitting())
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 40], [0, 0, 20, 20], [20, 20, 36, 30]]])
    truth = Truth(TRUTH[:1], LABELS[:1])
    there = torch.ones(1, 4, dtype=torch.bool)
    _, taken, must, columns = regions._all_regions(boxes, there, truth)
    assert taken.all()
    assert must.tolist() == [[False] * 4 + [True] * 2]
    assert columns["own"].tolist() == [[-1, -1, -1, -1, 0, 1]]
    # overlaps: 1, 1/4, 1/4 with the first (class 0); 10/16 with the second (class 1)
    expected = [
        [True, False],
        [False] * 2,
        [False] * 2,
        [False, True],
        [True, False],
        [False, True],
    ]
    assert columns["blocked"][0].tolist() == expected
    _, near, _, columns = regions._near_regions(boxes, there, truth)
    assert near.tolist() == [[True, False, False, True]]
    torch.testing.assert_close(columns["code"][0, 0], torch.zeros(4))
    # 16 x 10 about (28, 25) is to be 16 x 16 about (28, 28)
    torch.testing.assert_close(
        columns["code"][0, 3], torch.tensor([0.0, 0.3, 0.0, float(np.log(1.6))])
    )
    assert columns["own"][0, [0, 3]].tolist() == [0, 1]


@pytest.mark.parametrize("wrong", [{"penalty": 0.0}, {"cache_gb": 0}, {"images": 0}])
def test_numbers_out_of_range(wrong):
    with pytest.raises(ValueError, match="must be a"):
        Fitting(**wrong)
