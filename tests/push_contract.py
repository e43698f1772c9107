"""What a push does, whichever the database; the tests of each inherit it and say how to look into theirs."""

import contextlib
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from vector_outputs import publish_vectors

import imgindex
from imgindex.errors import OutputError, PublishRefusedError, UsageError
from imgindex.models.ann.protocol import Metric
from imgindex.sinks import transforms
from imgindex.sinks.databases import targets
from imgindex.sinks.databases.description import Description
from imgindex.sinks.databases.protocol import Database
from imgindex.uris import uri_of

COUNT, DIMS = 60, 6
VECTORS = np.random.default_rng(3).normal(size=(COUNT, DIMS)).astype(np.float32)


def generation(number: int) -> str:
    return f"20260101T000000Z-{number:08x}"


def collection(number: int, name: str = "photos") -> str:
    return f"{name}_20260101T000000Z_{number:08x}"


Rows = dict[str, tuple[str | None, str, int, int, list[float]]]


class Target(Protocol):
    """A database, seen by its own client and not by imgindex."""

    to: str
    uri: str

    def rows(self, name: str) -> Rows:
        """All rows of a collection or alias: label, sha256, width, height and vector, by uri."""

    def nearest(self, name: str, vector: npt.NDArray[np.float32], k: int, metric: Metric) -> list[str]:
        """The uris of the nearest."""

    def index_kind(self, name: str) -> str:
        """How the vectors of a collection are indexed."""

    def collections(self) -> set[str]:
        """All collections."""

    def leads_to(self, name: str) -> str | None:
        """The collection of an alias."""

    def make(self, name: str) -> None:
        """Makes a collection that is none of imgindex's."""

    def alias(self, name: str, collection: str) -> None:
        """Makes an alias."""


@dataclass
class Faults:
    """Stands before the methods of a database, each of whose calls may be made to fail."""

    before: Callable[[str], None]

    def on(self, database: Database) -> Database:
        before = self.before

        class Faulty:
            def __getattr__(self, name: str) -> Any:
                found = getattr(database, name)
                if not callable(found) or name in ("told", "close"):
                    return found

                def call(*arguments: Any, **named: Any) -> Any:
                    before(name)
                    return found(*arguments, **named)

                return call

        return Faulty()  # type: ignore[return-value]


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], None]], None]:
    """Has `before` called with the name of each method of the database that is called."""
    connect = targets.connected

    def install(before: Callable[[str], None]) -> None:
        for module in ("databases.push", "transforms"):
            monkeypatch.setattr(
                f"imgindex.sinks.{module}.connected",
                lambda to, uri, make: Faults(before).on(connect(to, uri, make=make)),
            )

    return install


class Killed(BaseException):
    """Stands for the end of the process: nothing is cleaned up."""


def killed_at(place: int, calls: list[str], killed_in: set[str]) -> Callable[[str], None]:
    """What is told before each call, and raises Killed from call `place` on; it notes calls and where."""

    def before(name: str) -> None:
        calls.append(name)
        if len(calls) > place:
            killed_in.add(name)
            raise Killed

    return before


# Pushes what the arguments say, and says when it begins.
PUSH = """
import sys
import imgindex
from imgindex.sinks.databases import sink

print("ready", flush=True)
imgindex.push(sys.argv[1], sys.argv[2], sys.argv[3], collection="photos", batch_rows=50)
"""


def push_and_kill(output: str, target: Target, seconds: float) -> None:
    """Kills a push so many seconds after it began, if it has not ended before."""
    process = subprocess.Popen(
        [sys.executable, "-c", PUSH, output, target.to, target.uri], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    process.wait()
    process.stdout.close()


class PushContract:
    """Inherited by the tests of each database, which have a fixture `target`."""

    @pytest.fixture
    def output(self, tmp_path: Path) -> str:
        return str(tmp_path / "index")

    def publish(
        self, output: str, number: int, count: int = COUNT, metric: Metric = "angular", shards: int = 1
    ) -> None:
        """Publishes a generation whose images all lie in a folder, and so have a label, of its number."""
        uris = [f"g{number}/{n:02}.jpg" for n in range(count)]
        publish_vectors(
            output, generation(number), uris, VECTORS[:count] + number, shards=shards, metric=metric
        )

    def push(self, output: str, target: Target, **options: Any) -> Any:
        return imgindex.push(output, target.to, target.uri, **{"collection": "photos", **options})

    def whole(self, target: Target, number: int, count: int = COUNT) -> bool:
        """Whether the alias leads to the whole of a generation, each image once."""
        rows = target.rows("photos")
        return sorted(rows) == [f"g{number}/{n:02}.jpg" for n in range(count)]

    @pytest.mark.parametrize("metric", ["angular", "euclidean"])
    def test_it_holds_and_finds_what_the_index_holds(
        self, metric: Metric, output: str, target: Target
    ) -> None:
        self.publish(output, 1, metric=metric, shards=3)
        pushed = self.push(output, target)
        assert (pushed.pushed, pushed.images, pushed.dims, pushed.before) == (True, COUNT, DIMS, None)
        assert pushed.collection == target.leads_to("photos") == collection(1)
        rows = target.rows("photos")
        assert len(rows) == COUNT
        scaled = target.to == "qdrant" and metric == "angular"  # which keeps vectors at length 1
        for n, (uri, (label, sha256, width, height, vector)) in enumerate(sorted(rows.items())):
            expected = VECTORS[n] + 1
            expected = expected / np.linalg.norm(expected) if scaled else expected
            assert (uri, label, sha256, width, height) == (f"g1/{n:02}.jpg", "g1", f"{n:064x}", 5, 6)
            assert vector == pytest.approx(expected.tolist(), rel=1e-6)
        stored = (VECTORS + 1).astype(np.float64)
        if metric == "angular":
            stored /= np.linalg.norm(stored, axis=1, keepdims=True)
        for n in range(0, COUNT, 7):
            exact = np.argsort(((stored - stored[n]) ** 2).sum(axis=1), kind="stable")[:10]
            found = target.nearest("photos", VECTORS[n] + 1, 10, metric)
            assert found == [f"g1/{place:02}.jpg" for place in exact]

    @pytest.mark.parametrize("batch_rows", [1, 7, 4096])
    def test_the_size_of_requests_changes_nothing(self, batch_rows: int, output: str, target: Target) -> None:
        self.publish(output, 1, 20)
        self.push(output, target, batch_rows=batch_rows)
        assert self.whole(target, 1, 20)

    def test_the_same_generation_again_does_nothing(
        self, output: str, target: Target, faults: Callable[[Callable[[str], None]], None]
    ) -> None:
        self.publish(output, 1)
        self.push(output, target)
        calls: list[str] = []
        faults(calls.append)
        again = self.push(output, target, keep=1)
        assert not again.pushed
        assert not {"create", "insert", "finish", "switch", "drop"} & set(calls)
        assert self.whole(target, 1)

    def test_an_older_one_comes_back_without_being_written_again(
        self, output: str, target: Target, faults: Callable[[Callable[[str], None]], None]
    ) -> None:
        for number in (1, 2):
            self.publish(output, number)
            self.push(output, target)
        assert self.whole(target, 2)
        calls: list[str] = []
        faults(calls.append)
        back = self.push(output, target, generation=generation(1))
        assert (back.pushed, back.before) == (True, collection(2))
        assert "switch" in calls
        assert not {"create", "insert", "drop"} & set(calls)
        assert self.whole(target, 1)

    def test_older_ones_are_deleted_but_for_so_many_and_what_is_live(
        self, output: str, target: Target
    ) -> None:
        for number in (1, 2, 3, 4):
            self.publish(output, number, 12)
            self.push(output, target)
        pushed = self.push(output, target, keep=3)
        assert pushed.dropped == (collection(1),)
        assert target.collections() == {collection(n) for n in (2, 3, 4)}
        self.push(output, target, generation=generation(2), keep=1)
        assert target.collections() == {collection(n) for n in (2, 4)}
        assert self.whole(target, 2, 12)

    def test_what_imgindex_did_not_make_stays(self, output: str, target: Target) -> None:
        theirs = {"photos_old", "photosx", collection(1, "other"), collection(0)}
        for name in theirs:
            target.make(name)
        for number in (1, 2):
            self.publish(output, number, 12)
            self.push(output, target, keep=1)
        assert target.collections() == theirs | {collection(2)}

    def test_another_name_is_another_index(self, output: str, target: Target) -> None:
        self.publish(output, 1, 12)
        self.push(output, target)
        self.push(output, target, collection="photos_b")
        self.publish(output, 2, 12)
        self.push(output, target, keep=1)
        assert target.collections() == {collection(2), collection(1, "photos_b")}
        assert target.leads_to("photos_b") == collection(1, "photos_b")

    def test_a_name_that_others_have_is_refused(self, output: str, target: Target) -> None:
        self.publish(output, 1, 12)
        target.make("photos")
        with pytest.raises(UsageError, match=r"has a .* photos.*choose another --collection"):
            self.push(output, target)
        target.make("theirs")
        target.alias("animals", "theirs")
        with pytest.raises(UsageError, match="which imgindex did not make; choose another --collection"):
            self.push(output, target, collection="animals")
        target.make(collection(1, "birds"))
        with pytest.raises(UsageError, match="which imgindex did not make; choose another --collection"):
            self.push(output, target, collection="birds")
        assert target.collections() == {"photos", "theirs", collection(1, "birds")}

    def test_killed_at_any_call_it_leaves_what_was_and_the_next_push_is_whole(
        self,
        output: str,
        target: Target,
        faults: Callable[[Callable[[str], None]], None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("imgindex.sinks.databases.sink.DatabaseSink.discard", lambda sink: None)
        self.publish(output, 1, 12)
        self.push(output, target)
        number = 1
        killed_in: set[str] = set()
        for place in range(100):
            number += 1
            self.publish(output, number, 12)
            calls: list[str] = []
            faults(killed_at(place, calls, killed_in))
            try:
                self.push(output, target, keep=2, batch_rows=4)
            except Killed:
                done = target.leads_to("photos") == collection(number)
                assert done == ("switch" in calls[:-1])
                assert self.whole(target, number if done else number - 1, 12)
            else:
                break
            faults(lambda name: None)
            self.push(output, target, keep=2, batch_rows=4)
            assert self.whole(target, number, 12)
        assert {"create", "insert", "finish", "count", "fetch", "search", "switch", "drop"} <= killed_in
        assert self.whole(target, number, 12)
        assert target.collections() == {collection(number), collection(number - 1)}

    def test_what_a_killed_push_has_left_goes_with_the_next_that_prunes(
        self,
        output: str,
        target: Target,
        faults: Callable[[Callable[[str], None]], None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.publish(output, 1, 12)
        self.push(output, target)
        self.publish(output, 2, 12)
        calls: list[str] = []

        def before(name: str) -> None:
            calls.append(name)
            if calls.count("insert") == 2:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr("imgindex.sinks.databases.sink.DatabaseSink.discard", lambda sink: None)
            faults(before)
            with pytest.raises(Killed):
                self.push(output, target, batch_rows=4)
        faults(lambda name: None)
        self.publish(output, 3, 8)
        self.push(output, target, keep=2)
        assert target.collections() == {collection(1), collection(3)}
        assert self.whole(target, 3, 8)

    def test_readers_see_one_generation_or_the_next(self, output: str, target: Target) -> None:
        self.publish(output, 1, 12)
        self.push(output, target)
        seen: set[str] = set()
        faults: list[object] = []
        ended = threading.Event()

        def read() -> None:
            while not ended.is_set():
                try:
                    found = target.nearest("photos", VECTORS[0], 10, "angular")
                    labels = {uri.partition("/")[0] for uri in found}
                    if len(found) != 10 or len(labels) != 1:
                        faults.append(found)
                    seen.update(labels)
                except Exception as error:
                    faults.append(error)

        def wait_for(label: str) -> None:
            while label not in seen and not faults:
                time.sleep(0.01)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            wait_for("g1")
            for number in range(2, 7):
                self.publish(output, number, 12)
                self.push(output, target, keep=2)
            wait_for("g6")
        finally:
            ended.set()
            reader.join()
        assert faults == []
        assert {"g1", "g6"} <= seen
        assert target.collections() == {collection(5), collection(6)}

    def test_any_names_and_copies(self, output: str, target: Target) -> None:
        names = [
            b"caf\xe9.jpg",
            b"\xff/\xfe.jpg",
            "猫 '\"\\.jpg".encode(),
            b"a/b.jpg",
            b"c/b.jpg",
            b"x\n\t.jpg",
        ]
        uris = [uri_of(os.fsdecode(name)) for name in names]
        vectors = VECTORS[[0, 1, 2, 3, 3, 4]]
        publish_vectors(output, generation(1), uris, vectors)
        self.push(output, target)
        assert sorted(target.rows("photos")) == sorted(uris)

    def test_a_kind_that_a_database_does_not_have(self, output: str, target: Target) -> None:
        self.publish(output, 1, 12)
        kinds = ", ".join(targets.TARGETS[target.to].index_kinds)
        with pytest.raises(UsageError, match=f"--index_kind is 'LSH'; {target.to} has {kinds}"):
            self.push(output, target, index_kind="LSH")
        assert target.collections() == set()

    def kill_at_random_moments(self, output: str, target: Target, seconds: float) -> None:
        """Each of IMGINDEX_PUSH_KILLS pushes is killed within so many seconds, and then made again."""
        pushes = int(os.environ.get("IMGINDEX_PUSH_KILLS", "3"))
        self.publish(output, 1)
        self.push(output, target)
        chance = random.Random(0)
        last = 1 + pushes
        for number in range(2, last + 1):
            uris = [f"g{number}/{n:05}.jpg" for n in range(4000)]
            vectors = np.random.default_rng(number).normal(size=(4000, DIMS)).astype(np.float32)
            publish_vectors(output, generation(number), uris, vectors)
            push_and_kill(output, target, chance.uniform(0, seconds))
            seen = target.leads_to("photos")
            assert seen in (collection(number - 1), collection(number))
            assert len(target.rows("photos")) == (COUNT if seen == collection(1) else 4000)
            self.push(output, target, keep=2)
            assert sorted(target.rows("photos")) == uris
        assert target.collections() == {collection(last - 1), collection(last)}


class KindsContract(PushContract):
    """Of a database that has several kinds of index."""

    def test_each_kind_of_index(self, output: str, target: Target) -> None:
        for number, kind in enumerate(targets.TARGETS[target.to].index_kinds, start=1):
            self.publish(output, number)
            self.push(output, target, index_kind=kind.swapcase())
            assert target.index_kind(collection(number)) == kind
            assert target.nearest("photos", VECTORS[7] + number, 1, "angular") == [f"g{number}/07.jpg"]

    def test_the_first_kind_is_the_default(self, output: str, target: Target) -> None:
        self.publish(output, 1)
        self.push(output, target)
        assert target.index_kind("photos") == targets.TARGETS[target.to].index_kinds[0]

    def test_another_kind_of_what_is_live_is_refused(self, output: str, target: Target) -> None:
        kinds = targets.TARGETS[target.to].index_kinds
        self.publish(output, 1, 12)
        self.push(output, target, index_kind=kinds[1])
        assert not self.push(output, target).pushed
        assert not self.push(output, target, index_kind=kinds[1]).pushed
        message = f"has an index of the kind {kinds[1]}, and is in use: leave out --index_kind, or push this"
        with pytest.raises(UsageError, match=message):
            self.push(output, target, index_kind=kinds[0])
        assert target.index_kind("photos") == kinds[1]
        self.push(output, target, index_kind=kinds[0], collection="others")
        assert target.index_kind("others") == kinds[0]

    def test_another_kind_of_what_is_not_live_is_made_anew(
        self, output: str, target: Target, faults: Callable[[Callable[[str], None]], None]
    ) -> None:
        kinds = targets.TARGETS[target.to].index_kinds
        for number in (1, 2):
            self.publish(output, number, 12)
            self.push(output, target, index_kind=kinds[1])
        calls: list[str] = []
        faults(calls.append)
        self.push(output, target, generation=generation(1), index_kind=kinds[0])
        assert {"drop", "create", "insert"} <= set(calls)
        assert target.index_kind("photos") == kinds[0]
        assert self.whole(target, 1, 12)
        calls.clear()
        self.push(output, target, generation=generation(2))  # whichever it has
        assert not {"drop", "create", "insert"} & set(calls)
        assert target.index_kind("photos") == kinds[1]


class TransformContract(PushContract):
    """Of a database that several processes write to at once."""

    def transform(self, output: str, target: Target, **options: Any) -> imgindex.PushGeneration:
        return imgindex.PushGeneration(output, target.to, target.uri, **{"collection": "photos", **options})

    def steps(self, push: imgindex.PushGeneration) -> str:
        """What its workers do, one after the other."""
        name = transforms._name_generation(push.generation, push)
        written = [transforms._write_shard(shard, push) for shard in transforms._make_collection(name, push)]
        return transforms._switch(name, push, written)

    def test_two_workers_write_what_a_push_writes(self, output: str, target: Target) -> None:
        self.publish(output, 1, 12)
        self.push(output, target)
        self.publish(output, 2, shards=4)
        self.push(output, target, collection="others")
        options = PipelineOptions(["--direct_num_workers=2", "--direct_running_mode=multi_processing"])
        with beam.Pipeline(options=options) as pipeline:
            _ = (
                pipeline
                | self.transform(output, target, keep=1, batch_rows=4)
                | beam.Map(lambda name, expected: name == expected or 1 / 0, collection(2))
            )
        assert target.leads_to("photos") == collection(2)
        assert target.rows("photos") == target.rows("others")
        assert target.collections() == {collection(2), collection(2, "others")}
        with contextlib.closing(targets.connected(target.to, target.uri, make=False)) as database:
            described = [
                Description.parse(database.collections(name)[collection(2, name)])
                for name in ("photos", "others")
            ]
        assert described[0] is not None
        assert described[0] == replace(described[1], collection="photos")

    def test_the_same_generation_again_writes_nothing(
        self, output: str, target: Target, faults: Callable[[Callable[[str], None]], None]
    ) -> None:
        self.publish(output, 1, shards=2)
        assert self.steps(self.transform(output, target)) == collection(1)
        calls: list[str] = []
        faults(calls.append)
        assert self.steps(self.transform(output, target)) == collection(1)
        assert not self.push(output, target).pushed
        assert not {"create", "insert", "finish", "switch", "drop"} & set(calls)

    def test_work_that_is_repeated_doubles_nothing(self, output: str, target: Target) -> None:
        """As a runner does: after an error, or because an attempt takes long, beside it."""
        self.publish(output, 1, 12)
        self.push(output, target)
        self.publish(output, 2, shards=3)
        push = self.transform(output, target, batch_rows=7)
        shards = list(transforms._make_collection(generation(2), push))
        assert sorted(shards) == sorted(transforms._make_collection(generation(2), push))
        with ThreadPoolExecutor(4) as pool:
            written = list(pool.map(lambda shard: transforms._write_shard(shard, push), shards * 3))
        assert sum(written) == 3 * COUNT
        assert self.whole(target, 1, 12)
        for _ in range(2):
            assert transforms._switch(generation(2), push, written) == collection(2)
            assert self.whole(target, 2)
        transforms._write_shard(shards[0], push)  # one that lags behind
        assert self.whole(target, 2)

    def test_killed_at_any_call_of_a_worker_the_next_run_is_whole(
        self, output: str, target: Target, faults: Callable[[Callable[[str], None]], None]
    ) -> None:
        self.publish(output, 1, 12)
        self.push(output, target)
        killed_in: set[str] = set()
        for place in range(100):
            number = place + 2
            self.publish(output, number, 12, shards=2)
            calls: list[str] = []
            faults(killed_at(place, calls, killed_in))
            try:
                self.steps(self.transform(output, target, batch_rows=4, keep=2))
            except Killed:
                assert self.whole(target, number if "switch" in calls[:-1] else number - 1, 12)
            else:
                break
            faults(lambda name: None)
            self.steps(self.transform(output, target, batch_rows=4, keep=2))
            assert self.whole(target, number, 12)
        assert {"create", "insert", "finish", "count", "fetch", "search", "switch", "drop"} <= killed_in
        assert target.collections() == {collection(number), collection(number - 1)}

    @pytest.mark.parametrize("lost", [True, False])
    def test_a_late_attempt_to_make_the_collection_deletes_no_rows(
        self,
        lost: bool,
        output: str,
        target: Target,
        faults: Callable[[Callable[[str], None]], None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """It sees none, and then another attempt makes and fills it. `lost`: it tries again after that."""
        monkeypatch.setattr("imgindex.io.retries._DELAYS", (0,))
        self.publish(output, 1, shards=2)
        push = self.transform(output, target)
        calls: list[str] = []

        def before(name: str) -> None:
            calls.append(name)
            if calls.count("create") == 1 and name == "create":
                for shard in transforms._make_collection(generation(1), push):
                    transforms._write_shard(shard, push)
                if lost:
                    raise OSError("the answer is lost")

        faults(before)
        if lost:
            list(transforms._make_collection(generation(1), push))
        else:
            with pytest.raises(OutputError, match=r"refuses a request: .*exist"):
                list(transforms._make_collection(generation(1), push))
        assert transforms._switch(generation(1), push, []) == collection(1)
        assert self.whole(target, 1)

    def test_what_differs_from_the_index_never_gets_the_name(
        self, output: str, target: Target, faults: Callable[[Callable[[str], None]], None]
    ) -> None:
        self.publish(output, 1, 12)
        self.push(output, target)
        self.publish(output, 2, shards=3)
        push = self.transform(output, target)
        shards = list(transforms._make_collection(generation(2), push))
        written = [transforms._write_shard(shard, push) for shard in shards[1:]]
        with pytest.raises(PublishRefusedError, match="it holds 40 rows, expected 60; photos still leads to"):
            transforms._switch(generation(2), push, written)
        assert target.collections() == {collection(1)}
        with pytest.raises(OutputError, match="is gone: an attempt before has refused it"):
            transforms._switch(generation(2), push, written)
        assert self.whole(target, 1, 12)

    def test_the_example_of_the_docs(
        self, output: str, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.publish(output, 1, shards=2)
        page = (Path(__file__).parents[1] / "docs" / "push.md").read_text()
        (example,) = (
            block
            for block in re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
            if "PushGeneration" in block
        )
        monkeypatch.chdir(tmp_path)
        example = example.replace("gs://bucket/index", output).replace('"pgvector"', f'"{target.to}"')
        exec(
            compile(example.replace("postgresql://photos@db/search", target.uri), "docs/push.md", "exec"), {}
        )
        assert self.whole(target, 1)
