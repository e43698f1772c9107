"""The transform that puts a generation into a vector database, with workers that write side by side."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
from apache_beam.pvalue import AsList, PBegin, PCollection

from imgindex.errors import AfterPublishError, PublishRefusedError, UsageError
from imgindex.generations.layout import Output, live_name, open_generation
from imgindex.generations.manifest import Manifest
from imgindex.runtime.progress import Progress
from imgindex.sinks.base import prune
from imgindex.sinks.databases.names import DEFAULT_NAME
from imgindex.sinks.databases.sink import DatabaseSink
from imgindex.sinks.databases.targets import checked_kind, checked_target, connected
from imgindex.sinks.source import BATCH_ROWS, opened

logger = logging.getLogger(__name__)


@dataclass
class PushGeneration(beam.PTransform):  # type: ignore[misc]
    """Puts a generation into a vector database, as `imgindex.push` does, but many workers write its shards.

    Applied to a pipeline, it gives a PCollection of one text, the name of the collection that clients see
    then. One worker makes the collection, all write, and when all have written, one compares the collection
    with the generation and has the name lead to it. What a runner repeats, writes the same rows again.
    Arguments are those of `imgindex.push`. Credentials are taken from the environment of the workers.

    Raises UsageError, when it is made, for arguments that do not fit, and for a database that one process
    writes to: Milvus Lite, and the local mode of Qdrant.
    """

    output: str | Path
    to: str
    uri: str
    collection: str = DEFAULT_NAME
    keep: int | None = None
    generation: str | None = None
    batch_rows: int | None = None
    index_kind: str | None = None

    def __post_init__(self) -> None:
        self.output = str(self.output)
        if checked_target(self.to, self.uri).has_folders and "://" not in self.uri:
            raise UsageError(
                f"{self.uri} is a folder, which one process writes to; give the address of a server, or use "
                "imgindex.push"
            )
        self.index_kind = checked_kind(self.to, self.index_kind)

    def expand(self, pipeline: PBegin) -> PCollection[str]:
        """Applies the transform."""
        generation = (
            pipeline
            | "Once" >> beam.Create([self.generation])
            | "NameGeneration" >> beam.Map(_name_generation, self)
            # From here on it is the same one, whatever is published meanwhile.
            | "SettleGeneration" >> beam.Reshuffle()
        )
        written = (
            generation
            | "MakeCollection" >> beam.FlatMap(_make_collection, self)
            | "SpreadShards" >> beam.Reshuffle()
            | "WriteShards" >> beam.Map(_write_shard, self)
        )
        return generation | "SwitchToIt" >> beam.Map(_switch, self, AsList(written))

    def manifest(self, generation: str) -> Manifest:
        """That of a generation."""
        return open_generation(Output(str(self.output)), generation, lambda found: found)

    @contextlib.contextmanager
    def sink(self, manifest: Manifest) -> Iterator[DatabaseSink]:
        """The collection of the generation of `manifest`, from the worker that this runs on."""
        with contextlib.closing(connected(self.to, self.uri, make=True)) as database:
            yield DatabaseSink(
                database,
                Output(str(self.output)),
                manifest,
                self.collection,
                keep=self.keep,
                batch_rows=self.batch_rows,
                index_kind=self.index_kind,
            )


def _name_generation(generation: str | None, push: PushGeneration) -> str:
    return live_name(Output(str(push.output))) if generation is None else generation


def _make_collection(generation: str, push: PushGeneration) -> Iterator[tuple[str, int]]:
    """Makes the collection where it is missing; gives the shards that are to be written."""
    manifest = push.manifest(generation)
    with push.sink(manifest) as sink:
        if not sink.is_live and sink.prepare():
            for number in range(len(manifest.shards)):
                yield generation, number


def _write_shard(shard: tuple[str, int], push: PushGeneration) -> int:
    """Writes a shard; gives how many rows it has."""
    generation, number = shard
    rows = 0
    with (
        push.sink(push.manifest(generation)) as sink,
        opened(str(push.output), generation, normalize=False, progress=Progress(), only=number) as source,
    ):
        for batch in source.of_shard(0, BATCH_ROWS):
            # Another attempt may have written some of them, and died or still be at it.
            sink.insert(batch, again=True)
            rows += len(batch.vectors)
    return rows


def _switch(generation: str, push: PushGeneration, written: Sequence[int]) -> str:
    """Compares the collection with the generation, and has the name lead to it."""
    logger.info("%d rows were written", sum(written))
    with push.sink(push.manifest(generation)) as sink:
        if not sink.is_live:  # an attempt before may have got there
            with opened(str(push.output), generation, normalize=False, progress=Progress()) as source:
                sink.examine(source)
                try:
                    sink.verify()
                except PublishRefusedError:
                    sink.discard()
                    raise
                sink.switch()
        try:
            prune(generation, sink)
        except AfterPublishError as error:
            logger.warning("%s", error)
        return sink.collection
