"""Joins of images by their bucket: CoGroupByKey of batches, in a third of its steps."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import PCollection
from apache_beam.transforms.window import GlobalWindows
from apache_beam.typehints.decorators import no_annotations

from imgindex.records import JOIN_BUCKETS, ImageFile, IndexedImage, KnownFailure, StoredImage, bucket_of

# Images that wait to be shuffled, in a worker: a bundle may be the whole listing.
_WAITING_IMAGES = 65_536

# Images in one element that a join gives.
_ELEMENT_IMAGES = 4096

# A bucket, and what of one side falls into it: 0 is the left side, 1 the right.
_Batch = tuple[int, tuple[int, list[Any]]]
# A bucket, and all that falls into it.
Joined = tuple[int, Iterable[tuple[int, list[Any]]]]


@dataclass
class JoinBy(beam.PTransform):  # type: ignore[misc]
    """Joins two PCollections by the bucket of each element; `left` and `right` take the result apart."""

    bucket: Callable[[Any], int]

    # Beam knows the annotations of a single PCollection only.
    @no_annotations  # type: ignore[untyped-decorator]
    def expand(self, sides: tuple[PCollection[Any], PCollection[Any]]) -> PCollection[Joined]:
        """Applies the transform."""
        one, other = sides
        return (
            one | "GatherLeft" >> beam.ParDo(_GatherBy(self.bucket, 0)),
            other | "GatherRight" >> beam.ParDo(_GatherBy(self.bucket, 1)),
        ) | "FlattenSides" >> beam.Flatten() | "GroupByBucket" >> beam.GroupByKey()  # fmt: skip


@beam.typehints.with_output_types(tuple[int, Any])  # a key whose coder every runner knows
class _GatherBy(beam.DoFn):  # type: ignore[misc]
    """Gathers a bundle's elements by bucket, so that they are shuffled in batches."""

    def __init__(self, bucket: Callable[[Any], int], side: int) -> None:
        self._bucket = bucket
        self._side = side

    def start_bundle(self) -> None:
        self._buckets: dict[int, list[Any]] = defaultdict(list)
        self._waiting = 0

    def process(self, element: Any) -> Iterator[_Batch]:
        self._buckets[self._bucket(element)].append(element)
        self._waiting += 1
        if self._waiting == _WAITING_IMAGES:
            yield from self._flush()

    def finish_bundle(self) -> Iterator[Any]:
        for batch in self._flush():
            yield GlobalWindows.windowed_value(batch)

    def _flush(self) -> Iterator[_Batch]:
        for bucket, elements in self._buckets.items():
            yield bucket, (self._side, elements)
        self._buckets.clear()
        self._waiting = 0


def left(joined: Joined) -> Iterator[Any]:
    """What of the first PCollection is in a bucket."""
    return (element for side, batch in joined[1] if side == 0 for element in batch)


def right(joined: Joined) -> Iterator[Any]:
    """What of the second PCollection is in a bucket."""
    return (element for side, batch in joined[1] if side == 1 for element in batch)


def uri_bucket(image: ImageFile | StoredImage | KnownFailure | IndexedImage) -> int:
    """The bucket of an image by its uri."""
    return bucket_of(image.uri, JOIN_BUCKETS)


def in_elements(images: list[StoredImage]) -> Iterator[list[StoredImage]]:
    """`images` in lists of a bounded length."""
    return (images[start : start + _ELEMENT_IMAGES] for start in range(0, len(images), _ELEMENT_IMAGES))
