"""A vector database as a sink: a collection for each generation, and a name that leads to one of them."""

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from imgindex.config.settings import PublishConfig
from imgindex.errors import OutputError, PublishRefusedError, UsageError
from imgindex.generations.layout import Output
from imgindex.generations.manifest import Manifest
from imgindex.runtime import signals
from imgindex.sinks.databases.description import Description
from imgindex.sinks.databases.names import checked_name, collection_name, is_collection_of
from imgindex.sinks.databases.protocol import Database, Vectors, asked, inserted
from imgindex.sinks.databases.sample import Sample
from imgindex.sinks.source import BATCH_ROWS, Batch, Source
from imgindex.text import counted, printable

logger = logging.getLogger(__name__)

T = TypeVar("T")

# What a request holds at most, where its rows are not given. As JSON vectors take three times as much, and
# servers take requests of 32 MiB.
_REQUEST_BYTES = 4 << 20
_BYTES_BESIDE_A_VECTOR = 300


class DatabaseSink:
    """The collection of one generation in a database."""

    def __init__(
        self,
        database: Database,
        output: Output,
        manifest: Manifest,
        name: str,
        *,
        keep: int | None = None,
        batch_rows: int | None = None,
        index_kind: str | None = None,
    ) -> None:
        """Clients ask the database for `name`; `prune` leaves `keep` generations, all of them by default.

        A collection that is made gets an `index_kind` of the database, by default its first. One that is
        there already must have that, if it is said.

        Raises:
          UsageError: an argument does not fit the database, or something else has the name.
          OutputError: the database cannot be asked.
        """
        if keep is not None and keep < 1:
            raise UsageError(f"--keep is {keep}; expected at least 1")
        if batch_rows is not None and not 1 <= batch_rows <= BATCH_ROWS:
            raise UsageError(f"--batch_rows is {batch_rows}; expected from 1 to {BATCH_ROWS}")
        self.name = checked_name(name, database.longest_name)
        if manifest.dims > database.most_dims:
            raise UsageError(
                f"the vectors have {manifest.dims} dimensions, and {database.at} can index "
                f"{database.most_dims}; build the index with fewer, as by --set pca.dims=150"
            )
        self.collection = collection_name(name, manifest.generation)
        self._database = database
        self._manifest = manifest
        self._keep = keep
        row_bytes = 4 * manifest.dims + _BYTES_BESIDE_A_VECTOR
        self._rows = batch_rows or max(1, min(BATCH_ROWS, _REQUEST_BYTES // row_bytes))
        self._kind = index_kind
        self._index = database.index_kind(index_kind or database.index_kinds[0], manifest.items)
        self.description = Description.of(output, manifest, name, self._index)
        self._sample: Sample | None = None
        self._thread: int | None = None  # that has made the collection, where readers do not see it yet
        self.before = asked(database, lambda: database.live(name))

    @property
    def is_live(self) -> bool:
        """Whether readers see the generation already. Raises OutputError where it has lost rows since."""
        if self.before != self.collection:
            return False
        held = self._count(self.collection)
        ours = self._ours().get(self.collection)
        leads = f"{self.collection}, which {self.name} leads to in {self._database.at},"
        other = "push this generation into another --collection, or another generation (--generation) first"
        if ours is None or ours.manifest != self.description.manifest or held != self.description.images:
            raise OutputError(
                f"{leads} holds {counted(held, 'row')} and not the "
                f"{counted(self.description.images, 'image')} that were pushed: something else has changed "
                f"it; {other}"
            )
        if self._kind not in (None, ours.index):
            raise UsageError(
                f"{leads} has an index of the kind {ours.index}, and is in use: leave out --index_kind, or "
                f"{other}"
            )
        return True

    def create(self, source: Source) -> None:
        """Fills a collection of its own, unless a push before has, which then is compared again."""
        held = self._held()
        whole = held == self._manifest.items
        if not whole:
            if held is not None:
                self._drop(self.collection)
            self._thread = threading.get_ident()
            self._make()
        self._sample = Sample(source)
        for batch in self._sample.watched():
            if not whole:
                self.insert(batch, again=False)
        self._finish()

    def prepare(self) -> bool:
        """As `create` begins, where others `insert`; whether rows are missing.

        What another attempt has begun stays, for its rows are the same.
        """
        held = self._held()
        if held is None:
            self._make()
        return held != self._manifest.items

    def insert(self, batch: Batch, *, again: bool) -> None:
        """Adds rows; `again`: some of them may be there already."""
        for images, vectors in self._requests(batch):
            inserted(self._database, self.collection, images, vectors, again=again)

    def examine(self, source: Source) -> None:
        """As `create` ends, where others have inserted the rows."""
        if self._held() is None:
            raise OutputError(
                f"{self.collection} in {self._database.at} is gone: an attempt before has refused it, and "
                "said why, or something else has deleted it; run it again"
            )
        self._sample = Sample(source)
        for _ in self._sample.watched():
            pass
        self._finish()

    def _held(self) -> int | None:
        """How many rows the collection has; None where it is not there. One of other rows is deleted.

        Raises UsageError where something else has its name.
        """
        described = self._ask(lambda: self._database.collections(self.name))
        if self.collection not in described:
            return None
        found = Description.parse(described[self.collection])
        if found is None:
            raise UsageError(
                f"{self._database.at} has {self.collection}, which imgindex did not make; choose another "
                "--collection"
            )
        if self._kind is None and found.index in self._database.index_kinds:
            self._index = self._database.index_kind(found.index, self._manifest.items)
            self.description = replace(self.description, index=found.index, search=self._index.search)
        if not found.holds_what(self.description):
            self._drop(self.collection)
            return None
        return self._count(self.collection)

    def _make(self) -> None:
        text, manifest = self.description.to_json(), self._manifest
        attempts = count()

        def create() -> None:
            # The request before may have got there, and others may write to the collection already.
            if next(attempts) and self.collection in self._database.collections(self.name):
                return
            self._database.create(self.collection, text, manifest.dims, manifest.metric, self._index)

        self._ask(create)

    def _finish(self) -> None:
        self._ask(lambda: self._database.finish(self.collection, self._manifest.metric, self._index))

    def _requests(self, batch: Batch) -> Iterator[tuple[pa.Table, Vectors]]:
        longest = self._database.longest_uri
        if longest is not None:
            lengths = pc.binary_length(batch.images["uri"])
            most = pc.max(lengths).as_py()
            if most > longest:
                uri = batch.images["uri"][pc.index(lengths, most).as_py()].as_py()
                raise OutputError(
                    f"the uri {printable(uri[:60])}… has {most} bytes, and a key in {self._database.at} "
                    f"has at most {longest}; leave the image out by images.exclude, or give it a shorter name"
                )
        for start in range(0, len(batch.vectors), self._rows):
            yield batch.images.slice(start, self._rows), batch.vectors[start : start + self._rows]

    def verify(self) -> None:
        """Compares the collection with the generation. Raises PublishRefusedError where they differ."""
        sample, database, manifest = self._sample, self._database, self._manifest
        if sample is None:
            raise RuntimeError("create comes before verify")
        held = self._count(self.collection)
        if held != manifest.items:
            raise self._refused(f"it holds {counted(held, 'row')}, expected {manifest.items}")
        if not len(sample.vectors):
            return
        uris = [str(image["uri"]) for image in sample.images]
        wrong = sample.wrong_rows(self._ask(lambda: database.fetch(self.collection, uris)))
        if wrong:
            raise self._refused(f"{printable(wrong[0])} does not have the vector and properties of the index")
        answers = self._ask(
            lambda: database.search(
                self.collection, sample.vectors, sample.depth, manifest.metric, self._index.search
            )
        )
        lost, recall = sample.searched(answers)
        logger.info("recall@10 in %s is %.3f", self.collection, recall)
        if lost:
            raise self._refused(
                f"{counted(lost, 'image')} of {len(uris)} did not come first in a search for itself"
            )
        limit = manifest.settings.publish.min_recall
        limit = PublishConfig.min_recall if limit is None else limit
        if recall < limit:
            raise self._refused(
                f"recall@10 is {recall:.3f}, less than publish.min_recall={limit} of the index; build it "
                "with a lower one to accept that"
            )

    def _refused(self, why: str) -> PublishRefusedError:
        self._thread = threading.get_ident()  # `discard` deletes it, also where an earlier push has filled it
        stays = f"{self.name} still leads to {self.before}" if self.before else f"there is no {self.name} yet"
        return PublishRefusedError(
            f"the collection {self.collection} in {self._database.at} was refused: {why}; {stays}"
        )

    def switch(self) -> None:
        """Has the name lead to the collection."""

        def switch() -> None:
            before = self._database.live(self.name)
            if before != self.collection:
                self._database.switch(self.name, self.collection, before)

        self._ask(switch)
        self._thread = None
        signals.done(f"{self.name} in {self._database.at} leads to generation {self._manifest.generation}")

    def prune(self) -> None:
        """Deletes collections of older generations, if it is said how many are kept; never the live one."""
        for collection in self.superseded():
            if collection != self._live():
                logger.info("deleting %s", collection)
                self._drop(collection)

    def superseded(self) -> list[str]:
        """The collections that `prune` deletes, once the name leads to that of this generation.

        Those are all of this name that imgindex has made but for the `keep` newest ones. What a push that
        died has left does not count, and goes where it is older than this generation.
        """
        if self._keep is None:
            return []
        ours = self._ours()
        others = ours.keys() - {self.collection}
        # A database may count rows that were written twice as two, until it has tidied up.
        whole = {name for name in others if self._count(name) >= ours[name].images}
        newest = sorted(whole | {self.collection}, reverse=True)[: self._keep]
        half = {name for name in others - whole if name < self.collection}
        return sorted(half | (whole - set(newest)))

    def _ours(self) -> dict[str, Description]:
        """The collections of this name that imgindex has made, and what they say of themselves."""
        described = self._ask(lambda: self._database.collections(self.name))
        found = {name: Description.parse(text) for name, text in described.items()}
        return {
            name: description
            for name, description in found.items()
            if description and is_collection_of(self.name, name) and description.collection == self.name
        }

    def discard(self) -> None:
        """Deletes the collection that was being made, but not for a signal: its client is in use then.

        The next push of the generation starts over, and that of another one deletes what is left.
        """
        if self._thread == threading.get_ident():
            self._thread = None
            try:
                # A switch whose answer was lost may have got there.
                if self._database.live(self.name) != self.collection:
                    self._database.drop(self.collection)
            except Exception as error:
                told = self._database.told(error)
                if told is None:
                    raise
                logger.info("%s stays until the next push: %s", self.collection, told)

    def _ask(self, call: Callable[[], T]) -> T:
        return asked(self._database, call)

    def _live(self) -> str | None:
        return self._ask(lambda: self._database.live(self.name))

    def _count(self, collection: str) -> int:
        return self._ask(lambda: self._database.count(collection))

    def _drop(self, collection: str) -> None:
        self._ask(lambda: self._database.drop(collection))
