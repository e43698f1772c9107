"""The transforms that compare with the live generation, and that list failures."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.pvalue import AsSingleton, PCollection, TaggedOutput
from apache_beam.typehints.decorators import no_annotations

from imgindex.errors import DamagedError
from imgindex.features.join import JoinBy, Joined, in_elements, left, right, uri_bucket
from imgindex.generations import failure_lists
from imgindex.generations.counters import Counters
from imgindex.generations.failure_lists import FailureList
from imgindex.indexing.shard_files import read_digests
from imgindex.records import Failure, IndexedImage, StoredImage, WrittenFile

logger = logging.getLogger(__name__)


@dataclass
class WriteFailures(beam.PTransform):  # type: ignore[misc]
    """Writes `Failure`s as the lists of a generation; gives `FailureList`s.

    `list_count`, a singleton, is how many lists there are to be; each comes, also where it is empty.
    """

    generation: str
    list_count: AsSingleton

    def expand(self, failed: PCollection[Failure]) -> PCollection[FailureList]:
        """Applies the transform."""
        pairs = tuple[int, Any]  # whose coder every runner knows
        return (
            (
                failed.pipeline
                | "Once" >> beam.Create([None])
                | "NumberLists" >> beam.FlatMap(_every_list, self.list_count).with_output_types(pairs),
                failed
                | "SpreadOverLists" >> beam.Map(_in_its_list, self.list_count).with_output_types(pairs),
            )
            | "FlattenLists" >> beam.Flatten()
            | "GroupByList" >> beam.GroupByKey()
            | "WriteLists" >> beam.Map(_write_list, self.generation, self.list_count)
        )


def _every_list(_: None, list_count: int) -> Iterator[tuple[int, tuple[Failure, ...]]]:
    return ((number, ()) for number in range(list_count))


def _in_its_list(failure: Failure, list_count: int) -> tuple[int, tuple[Failure, ...]]:
    return failure_lists.list_of(failure, list_count), (failure,)


def _write_list(
    element: tuple[int, Iterable[tuple[Failure, ...]]], generation: str, list_count: int
) -> FailureList:
    number, parts = element
    failed = (failure for part in parts for failure in part)
    return failure_lists.write_list(generation, number, list_count, failed)


class Compared(NamedTuple):
    """What is to be indexed against a generation."""

    counts: PCollection[Counters]  # of added, changed, removed and unchanged images
    changes: PCollection[list[StoredImage]]  # those that are added or changed


@dataclass
class CompareGenerations(beam.PTransform):  # type: ignore[misc]
    """Compares lists of `StoredImage`s that are to be indexed with the generation that `metadata` describes.

    Gives a `Compared`.
    """

    metadata: Sequence[WrittenFile]  # the generation's metadata shards, with their whole paths

    # Beam knows the annotations of a single PCollection only.
    @no_annotations  # type: ignore[untyped-decorator]
    def expand(self, held: PCollection[list[StoredImage]]) -> Compared:
        """Applies the transform."""
        before = (
            held.pipeline
            # Spreads them over workers where there are several.
            | "LocateShards" >> beam.Create(list(self.metadata))
            | "ReadDigests" >> beam.FlatMap(_read_digests)
        )
        now = held | "EachHeld" >> beam.FlatMap(lambda images: images)
        compared = (
            (before, now)
            | "JoinByUri" >> JoinBy(uri_bucket)
            | "Compare" >> beam.FlatMap(_compare_bucket).with_outputs("changes", main="counts")
        )
        return Compared(compared.counts, compared.changes)


def _read_digests(metadata: WrittenFile) -> Iterator[IndexedImage]:
    """What a metadata shard holds; of one that is damaged nothing, so that its images count as added."""
    try:
        yield from read_digests(metadata)
    except DamagedError as error:
        logger.warning("%s: its images count as added", error)


def _compare_bucket(joined: Joined) -> Iterator[Any]:
    before = dict(left(joined))
    counts = dict.fromkeys(("added", "changed", "removed", "unchanged"), 0)
    changes = []
    kept = 0
    for image in right(joined):
        digest = before.get(image.uri)
        kind = "added" if digest is None else "unchanged" if digest == image.sha256 else "changed"
        counts[kind] += 1
        kept += kind != "added"
        if kind != "unchanged":
            changes.append(image)
    counts["removed"] = len(before) - kept
    for some in in_elements(changes):
        yield TaggedOutput("changes", some)
    yield Counters(counts)
