"""What a network says of regions, and how that of the training images comes into a store.

What SVMs and regressors are solved on (``fitted_regions``): computed once, image by image, no more
of it than there is to be on the disk.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from cnnctl.errors import Exit, UserError
from cnnctl.models.detection import Truth, truth_of
from cnnctl.models.feature_cache import FeatureFolder, FeatureStore, image_digests, require_space
from cnnctl.models.region_fitting import Fitting
from cnnctl.models.regions import proposed
from cnnctl.structures import Batch, Images

BESIDE = 16  # true boxes of an image that are reckoned with where a size is told beforehand


@dataclass
class RegionFeatures:
    """What a network says of B regions.

    Args:
        named: (B, D) what the SVMs see: fc7 in the papers.
        placed: (B, E) what the regressors see, where things in the region still have places: pool5.
    """

    named: Tensor
    placed: Tensor


# Which of the regions (b,) int64, and what is said of them: a part of all, so memory is bounded.
Parts = Iterable[tuple[Tensor, RegionFeatures]]
# (images of any sizes, boxes (B, 4) in input pixels, image (B,) int64 whose each is, in order) ->
# what the network says of them
Describe = Callable[[Images, Tensor, Tensor], Parts]
# regions (N, P, 4), which of them are taken, which of these must be (N, P), columns (N, P, ...)
Chosen = tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]
Choose = Callable[[Tensor, Tensor, Truth], Chosen]


@dataclass
class FeatureExtraction:
    """Features of the chosen regions of the training images, from a network into a store.

    Args:
        fitting: which images, and how much of the disk.
        num_classes: K.
        images: how many the training data has, None where that is not known.
        describe: what the network says of regions; None: only sizes are asked for.
        network: all weights and statistics that decide on the features.
        settings: all other things that do, as text.
    """

    fitting: Fitting
    num_classes: int
    images: Callable[[], int | None]
    describe: Describe | None = None
    network: Callable[[], Iterable[Tensor]] = tuple
    settings: str = ""

    def folder(self) -> FeatureFolder:
        fitting = self.fitting
        decide = (self.settings, self.num_classes, fitting.negative, fitting.near)
        share = (fitting.cache_gb, fitting.images, self.images())
        return FeatureFolder(self.network(), repr((decide, share)))

    def bytes(self, proposals: int, share: float, width: int) -> int:
        """That a store takes at most, or would if ``cache_gb`` were larger: of rows of ``width``
        bytes, one for a share of the proposals and for each true box."""
        regions = math.ceil(proposals * share) + BESIDE
        return int(min((self._count() or 0) * regions * width, self.fitting.cache_gb * 1e9))

    def fill(
        self,
        store: FeatureStore,
        batches: Iterator[Batch],
        share: float,
        choose: Choose,
        part: Callable[[RegionFeatures], Tensor],
    ) -> None:
        """Put the chosen regions of all images into the store, but those that are there."""
        left = math.inf if self.fitting.images is None else self.fitting.images
        count, limit = self._count(), self.fitting.cache_gb * 1e9 / store.row_bytes
        most = max(1, int(limit // count)) if count else None
        started = False
        for batch in batches:
            if left < len(batch):
                batch = batch.rows(slice(0, int(left)))
            left -= len(batch)
            if not started:
                assert batch.images.proposals is not None, "build sees to it that there are some"
                # Of these images; where others have more, the disk may be full before the end.
                proposals = batch.images.proposals.shape[1]
                require_space(store.folder, self.bytes(proposals, share, store.row_bytes))
                started = True
            self._add(store, batch, most, choose, part)
            if store.count > max(limit, BESIDE * (count or 0)):
                raise _outgrown(self.fitting.cache_gb)
            if left <= 0:
                return

    def _add(
        self,
        store: FeatureStore,
        batch: Batch,
        most: int | None,
        choose: Choose,
        part: Callable[[RegionFeatures], Tensor],
    ) -> None:
        digests = image_digests(batch.images, batch.targets)
        new = next((row for row, one in enumerate(digests) if not store.knows(one)), None)
        if new is None:
            return
        boxes, there = proposed(batch.images)
        boxes, chosen, must, columns = choose(boxes, there, truth_of(batch.images, batch.targets))
        chosen[:new] = False
        if most is not None and int(chosen.sum(1).max()) > most:
            self._warn(most)
            chosen = thinned(chosen, must, most)
        image, row = chosen.nonzero(as_tuple=True)
        assert self.describe is not None
        rows = boxes.new_empty(len(image), store.width)
        for some, said in self.describe(batch.images, boxes[image, row], image):
            rows[some] = part(said).to(rows)
        own = {name: column[image, row] for name, column in columns.items()}
        store.add(digests[new:], chosen.sum(1).tolist()[new:], rows, own)

    def _count(self) -> int | None:
        count, wanted = self.images(), self.fitting.images
        return count if count is None or wanted is None else min(count, wanted)

    def _warn(self, most: int) -> None:
        warnings.warn(
            f"at most {most:,} regions of an image are learnt from, as the features of all would"
            f" take more than model.cache_gb={self.fitting.cache_gb:g}",
            stacklevel=2,
        )


def thinned(chosen: Tensor, must: Tensor, most: int) -> Tensor:
    """(N, P) bool: ``most`` of those chosen of each image, spread evenly over their order, the
    likeliest first; of these the ``must`` (N, P) all."""
    must = must & chosen
    rest = chosen & ~must
    room = (most - must.sum(1, keepdim=True)).clamp(min=0)
    count = rest.sum(1, keepdim=True).clamp(min=1)
    room = room.minimum(count)
    rank = rest.cumsum(1)  # from 1
    return must | (rest & (rank * room // count > (rank - 1) * room // count))


def _outgrown(cache_gb: float) -> UserError:
    return UserError(
        f"the features of the regions outgrow model.cache_gb={cache_gb:g}",
        field="model.cache_gb",
        advice="take more, or fewer proposals (proposals.count=) or model.fit_images=, and resume",
        code=Exit.MACHINE,
    )
