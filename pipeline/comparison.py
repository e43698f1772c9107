"""What is to be indexed against the live generation, and by the chunk that holds it."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from imgindex.errors import DamagedError
from imgindex.join import JoinBy, Joined, in_elements, left, right, uri_bucket
from imgindex.opened import read_digests
from imgindex.records import IndexedImage, StoredImage, Tally, WrittenFile

logger = logging.getLogger(__name__)


@dataclass
class CompareGenerations(beam.PTransform):  # type: ignore[misc]
    """Compares lists of `StoredImage`s that are to be indexed with the generation that `metadata` describes.

    Gives ``counts``, a PCollection of `Tally`s of added, changed, removed and unchanged images, and
    ``news``, one of lists of the `StoredImage`s that are added or changed.
    """

    metadata: Sequence[WrittenFile]  # the generation's metadata shards, with their whole paths

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, held: Any) -> Any:
        """Applies the transform."""
        before = (
            held.pipeline
            # Spreads them over workers where there are several.
            | "LocateShards" >> beam.Create(list(self.metadata))
            | "ReadDigests" >> beam.FlatMap(_read_digests)
        )
        now = held | "EachHeld" >> beam.FlatMap(lambda images: images)
        return (
            (before, now)
            | "JoinByUri" >> JoinBy(uri_bucket)
            | "Compare" >> beam.FlatMap(_compare_bucket).with_outputs("news", main="counts")
        )


def _read_digests(metadata: WrittenFile) -> Iterator[IndexedImage]:
    """What a metadata shard holds; of one that is damaged nothing, so that its images count as added."""
    try:
        yield from read_digests(metadata)
    except DamagedError as error:
        logger.warning("%s: its images count as added", error)


def _compare_bucket(joined: Joined) -> Iterator[Any]:
    before = dict(left(joined))
    counts = dict.fromkeys(("added", "changed", "removed", "unchanged"), 0)
    news = []
    kept = 0
    for image in right(joined):
        digest = before.get(image.uri)
        kind = "added" if digest is None else "unchanged" if digest == image.sha256 else "changed"
        counts[kind] += 1
        kept += kind != "added"
        if kind != "unchanged":
            news.append(image)
    counts["removed"] = len(before) - kept
    for some in in_elements(news):
        yield TaggedOutput("news", some)
    yield Tally(counts)


@dataclass
class GroupByChunk(beam.PTransform):  # type: ignore[misc]
    """Turns lists of `StoredImage`s into ``(chunk, rows)``, each chunk once."""

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, held: Any) -> Any:
        """Applies the transform."""
        return (
            held
            | "SplitByChunk" >> beam.FlatMap(_rows_by_chunk)
            | "GroupRows" >> beam.GroupByKey()
            | "SortRows" >> beam.MapTuple(_sorted_rows)
        )


def _rows_by_chunk(images: Iterable[StoredImage]) -> Iterable[tuple[str, list[int]]]:
    rows: dict[str, list[int]] = defaultdict(list)
    for image in images:
        rows[image.chunk].append(image.row)
    return rows.items()


def _sorted_rows(chunk: str, parts: Iterable[list[int]]) -> tuple[str, list[int]]:
    return chunk, sorted(row for rows in parts for row in rows)
