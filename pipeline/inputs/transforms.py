"""The transform that lists an input: it only wires; the work is in `pieces`, `lookup` and `tar_members`."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.pvalue import PBegin, PCollection, TaggedOutput
from apache_beam.typehints.decorators import no_annotations

from imgindex.config import ImagesConfig
from imgindex.inputs.lookup import look_up
from imgindex.inputs.pieces import NamedFiles, Piece, cut, cut_list, without_repeats
from imgindex.inputs.selection import Selection
from imgindex.inputs.skipped import Skipped
from imgindex.inputs.source import is_list, settled
from imgindex.inputs.tar_members import TarFile, images_of, split
from imgindex.records import Failure, ImageFile, bucket_of
from imgindex.runtime.beam_counters import count_failure
from imgindex.uris import name_of, uri_of

# Into how many parts a list is cut where what it names twice is dropped.
_BUCKETS = 256


class Listed(NamedTuple):
    """A listing."""

    files: PCollection[ImageFile]
    failures: PCollection[Failure]
    skipped: PCollection[Skipped]  # how many other files the input holds


@dataclass
class ListImages(beam.PTransform):  # type: ignore[misc]
    """Lists the images of a directory, a glob, a tar or a list; workers share the looking up.

    Gives a `Listed`.
    """

    source: str
    extensions: Sequence[str] = ImagesConfig.extensions
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    # Beam knows the annotations of a single PCollection only.
    @no_annotations  # type: ignore[untyped-decorator]
    def expand(self, pbegin: PBegin) -> Listed:
        """Applies the transform."""
        selection = Selection(tuple(self.extensions), tuple(self.include), tuple(self.exclude))
        selection = settled(selection, self.source)
        located = pbegin | "LocateInput" >> beam.Create([self.source])
        skipped = []
        if is_list(self.source):
            pieces = (
                located
                | "ReadList" >> beam.FlatMap(cut_list)
                | "SplitByBucket" >> beam.FlatMap(_files_by_bucket)
                | "GroupNames" >> beam.GroupByKey()
                | "DropRepeats" >> beam.FlatMap(_without_repeats)
            )
        else:
            named = located | "CutListing" >> beam.FlatMap(_cut, selection).with_outputs(
                "skipped", main="pieces"
            )
            pieces = named.pieces
            skipped.append(named.skipped)
        found = (
            pieces
            | "SpreadPieces" >> beam.Reshuffle()
            | "LookUp"
            >> beam.FlatMap(_look_up, self.source, selection).with_outputs(
                "failures", "tars", "skipped", main="files"
            )
        )
        members = (
            found.tars
            | "SpreadTars" >> beam.Reshuffle()
            | "ListTars"
            >> beam.FlatMap(_list_tar, selection).with_outputs("failures", "skipped", main="files")
        )
        return Listed(
            (found.files, members.files) | "FlattenFiles" >> beam.Flatten(),
            (found.failures, members.failures) | "FlattenFailures" >> beam.Flatten(),
            (*skipped, found.skipped, members.skipped) | "FlattenSkipped" >> beam.Flatten(),
        )


def _files_by_bucket(piece: NamedFiles) -> Iterable[tuple[int, list[tuple[str, str]]]]:
    buckets: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for uri, path in piece.files:
        # All of a tar together, which is gone through once.
        tar = split(uri)
        # The path as a uri, too: Beam encodes text as UTF-8, and a path may hold other bytes.
        buckets[bucket_of(tar[0] if tar else uri, _BUCKETS)].append((uri, uri_of(path)))
    return buckets.items()


def _without_repeats(
    bucket: tuple[int, Iterable[list[tuple[str, str]]]],
) -> Iterator[NamedFiles]:
    return without_repeats((uri, name_of(path)) for files in bucket[1] for uri, path in files)


def _cut(source: str, selection: Selection) -> Iterator[Any]:
    return map(_tagged, cut(source, selection))


def _look_up(piece: Piece, source: str, selection: Selection) -> Iterator[Any]:
    return map(_tagged, look_up(piece, source, selection))


def _list_tar(tar: TarFile, selection: Selection) -> Iterator[Any]:
    return map(_tagged, images_of(tar, selection.rules()))


def _tagged(listed: ImageFile | Failure | TarFile | Skipped | Piece) -> Any:
    match listed:
        case Failure():
            return TaggedOutput("failures", count_failure(listed))
        case TarFile():
            return TaggedOutput("tars", listed)
        case Skipped():
            return TaggedOutput("skipped", listed)
    return listed
