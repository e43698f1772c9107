"""Pushes into a database, with Qdrant's local mode for one; see `push_contract`."""

import contextlib
import json
import re
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
from push_contract import VECTORS, PushContract, collection, faults, generation
from vector_outputs import publish_vectors

import imgindex
from imgindex.cli import main
from imgindex.errors import MachineError, OutputError, PublishRefusedError, UsageError
from imgindex.models.ann.protocol import Metric
from imgindex.sinks.databases.targets import TARGETS

qdrant_client = pytest.importorskip("qdrant_client", reason="needs the extra qdrant")
from imgindex.sinks.databases import qdrant  # noqa: E402
from imgindex.sinks.databases.protocol import Vectors  # noqa: E402

__all__ = ["faults"]


class InMemory(qdrant.Qdrant):
    """Qdrant's local mode without a folder, which outlives connections."""

    def close(self) -> None:
        pass


class QdrantTarget:
    to, uri = "qdrant", "memory"

    def __init__(self, client: qdrant_client.QdrantClient) -> None:
        self.client = client

    def rows(self, name: str) -> dict[str, tuple[str | None, str, int, int, list[float]]]:
        points, _ = self.client.scroll(name, limit=10_000, with_payload=True, with_vectors=True)
        keys = ("label", "sha256", "width", "height")
        rows = {p.payload["uri"]: (*(p.payload[key] for key in keys), p.vector) for p in points}
        assert len(rows) == len(points)
        return rows

    def nearest(self, name: str, vector: npt.NDArray[np.float32], k: int, metric: Metric) -> list[str]:
        found = self.client.query_points(name, query=vector.tolist(), limit=k).points
        return [point.payload["uri"] for point in found]

    def collections(self) -> set[str]:
        return {each.name for each in self.client.get_collections().collections}

    def leads_to(self, name: str) -> str | None:
        found = {each.alias_name: each.collection_name for each in self.client.get_aliases().aliases}
        return found.get(name)

    def make(self, name: str) -> None:
        models = qdrant_client.models
        self.client.create_collection(
            name, vectors_config=models.VectorParams(size=2, distance=models.Distance.DOT)
        )

    def alias(self, name: str, collection: str) -> None:
        models = qdrant_client.models
        created = models.CreateAlias(collection_name=collection, alias_name=name)
        self.client.update_collection_aliases([models.CreateAliasOperation(create_alias=created)])


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> QdrantTarget:
    client = qdrant_client.QdrantClient(":memory:")
    monkeypatch.setattr(qdrant, "connect", lambda uri, make: InMemory(uri, client))
    return QdrantTarget(client)


@pytest.fixture
def output(tmp_path: Path) -> str:
    """An output with one generation of twelve images."""
    folder = str(tmp_path / "index")
    publish_vectors(folder, generation(1), [f"g1/{n:02}.jpg" for n in range(12)], VECTORS[:12])
    return folder


class TestQdrant(PushContract):
    def test_the_description_holds_the_recipe(self, output: str, target: QdrantTarget) -> None:
        self.publish(output, 1, 12)
        self.push(output, target)
        manifest = json.loads(Path(output, "generations", generation(1), "manifest.json").read_text())
        (basis,) = (file["sha256"] for file in manifest["files"] if file["path"] == manifest["basis"])
        described = target.client.get_collection("photos").config.metadata["imgindex"]
        assert described == {
            "imgindex": 1, "collection": "photos", "generation": generation(1), "output": output,
            "manifest": manifest["digest"], "spec": "spec", "backbone": "MobileNetV2", "basis": basis,
            "metric": "angular", "dims": 6, "images": 12, "index": "hnsw", "search": {"hnsw_ef": 256},
        }  # fmt: skip


def push(output: str, **options: Any) -> Any:
    return imgindex.push(output, "qdrant", "memory", **{"collection": "photos", **options})


class TestVerification:
    """What differs from the index never gets the name."""

    def refused(self, output: str, target: QdrantTarget, insert: Callable[..., None], message: str) -> None:
        publish_vectors(output, generation(2), [f"g2/{n:02}.jpg" for n in range(30)], VECTORS[:30])
        push(output, generation=generation(1))
        own = InMemory.insert

        def changed(self: InMemory, *rows: Any, again: bool) -> None:
            insert(lambda *others: own(self, *others, again=again), *rows)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(InMemory, "insert", changed)
            with pytest.raises(PublishRefusedError, match=message) as refused:
                push(output)
        assert f"photos still leads to {collection(1)}" in str(refused.value)
        assert target.leads_to("photos") == collection(1)
        assert target.collections() == {collection(1)}

    def test_a_row_that_is_lost(self, output: str, target: QdrantTarget) -> None:
        def insert(own: Callable[..., None], name: str, images: Any, vectors: Vectors) -> None:
            own(name, images.slice(1), vectors[1:])

        self.refused(output, target, insert, r"it holds 29 rows, expected 30")

    def test_vectors_of_other_images(self, output: str, target: QdrantTarget) -> None:
        def insert(own: Callable[..., None], name: str, images: Any, vectors: Vectors) -> None:
            own(name, images, vectors[::-1])

        self.refused(output, target, insert, r"does not have the vector and properties of the index")

    def test_an_index_that_does_not_find_an_image_itself(self, output: str, target: QdrantTarget) -> None:
        search = InMemory.search
        with pytest.MonkeyPatch.context() as patch:

            def insert(own: Callable[..., None], *rows: Any) -> None:
                own(*rows)
                patch.setattr(InMemory, "search", lambda *given: [found[1:] for found in search(*given)])

            self.refused(output, target, insert, "30 images of 30 did not come first in a search for itself")

    @pytest.mark.parametrize(("kept", "passes"), [(10, True), (9, False)])
    def test_an_index_of_too_little_recall(
        self, kept: int, passes: bool, output: str, target: QdrantTarget, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A tenth or a fifth of the ten neighbors is lost, where recall must be 0.9."""
        search = InMemory.search
        monkeypatch.setattr(InMemory, "search", lambda *given: [rows[:kept] for rows in search(*given)])
        if passes:
            assert push(output).pushed
        else:
            with pytest.raises(
                PublishRefusedError, match=r"recall@10 is 0\.800, less than publish\.min_recall=0\.9"
            ):
                push(output)
            assert target.collections() == set()

    def test_exit_codes(self, output: str, target: QdrantTarget, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(InMemory, "count", lambda self, name: 7)
        assert main(["push", output, "--to", "qdrant", "memory"]) == 4

    def test_a_live_collection_that_lost_rows_is_told(self, output: str, target: QdrantTarget) -> None:
        push(output)
        target.client.delete("photos", [p.id for p in target.client.scroll("photos", limit=2)[0]])
        with pytest.raises(
            OutputError, match=r"holds 10 rows and not the 12 images.*into another --collection"
        ):
            push(output)


class TestTransientErrors:
    @pytest.fixture(autouse=True)
    def _no_waiting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("imgindex.io.retries._DELAYS", (0, 0))

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_each_call_is_tried_again(
        self, when: str, output: str, target: QdrantTarget, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also where the request got there, and only its answer was lost."""
        failed: set[str] = set()

        def flaky(name: str) -> None:
            own = getattr(InMemory, name)

            def call(self: InMemory, *given: Any, **named: Any) -> Any:
                if when == "before" and name not in failed:
                    failed.add(name)
                    raise qdrant.ResponseHandlingException(OSError("connection reset"))
                result = own(self, *given, **named)
                if name not in failed:
                    failed.add(name)
                    raise qdrant.ResponseHandlingException(OSError("connection reset"))
                return result

            monkeypatch.setattr(InMemory, name, call)

        names = "collections", "live", "create", "insert", "finish", "count", "fetch", "search", "switch"
        for name in names:
            flaky(name)
        push(output)
        assert failed >= set(names)
        assert sorted(target.rows("photos")) == [f"g1/{n:02}.jpg" for n in range(12)]

    def test_a_switch_whose_answer_is_lost_for_good(
        self, output: str, target: QdrantTarget, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The push fails, and what the name leads to now stays: Qdrant would delete it with the name."""
        own, live = InMemory.switch, InMemory.live
        lost = qdrant.ResponseHandlingException(OSError("connection reset"))
        away: list[str] = []

        def switch(self: InMemory, *given: Any) -> None:
            own(self, *given)
            away.extend(["the second attempt", "the third"])
            raise lost

        def live_again(self: InMemory, name: str) -> str | None:
            if away:
                away.pop()
                raise lost
            return live(self, name)

        monkeypatch.setattr(InMemory, "switch", switch)
        monkeypatch.setattr(InMemory, "live", live_again)
        with pytest.raises(OutputError, match="does not answer: connection reset"):
            push(output)
        assert away == []
        assert sorted(target.rows("photos")) == [f"g1/{n:02}.jpg" for n in range(12)]

    def test_a_server_that_stays_away_in_the_middle(
        self,
        output: str,
        target: QdrantTarget,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def gone(*given: Any, **named: Any) -> None:
            raise qdrant.ResponseHandlingException(OSError("connection reset"))

        monkeypatch.setattr(InMemory, "insert", gone)
        assert main(["push", output, "--to", "qdrant", "memory"]) == 3
        assert capsys.readouterr().err == (
            "imgindex: Qdrant at memory does not answer: connection reset; see that it runs and can be "
            "reached, and run it again\n"
        )
        assert target.leads_to("imgindex") is None


class Answer(BaseHTTPRequestHandler):
    """Answers every request alike, and keeps what it was sent."""

    status: ClassVar[int] = 200
    sent: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        self.sent.append(self.headers.get("api-key"))
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps({"status": {"error": "not today"}}).encode())

    def log_message(self, *given: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    served = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    thread.join()
    served.server_close()


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "refuses the credentials; set QDRANT_API_KEY to a key that may write"),
        (403, "refuses the credentials; set QDRANT_API_KEY to a key that may write"),
        (404, "refuses a request: not today"),
        (503, "is not ready: it says 503 Service Unavailable; run it again"),
    ],
)
def test_what_a_server_refuses(
    status: int,
    message: str,
    output: str,
    server: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("imgindex.io.retries._DELAYS", (0,))
    monkeypatch.setattr(Answer, "status", status)
    monkeypatch.setattr(Answer, "sent", [])
    monkeypatch.setenv("QDRANT_API_KEY", "the secret key")
    assert main(["push", output, "--to", "qdrant", server]) == 3
    said = "".join(capfd.readouterr())
    assert f"imgindex: Qdrant at {server} {message}" in said
    assert said.count("\n") == 1
    assert set(Answer.sent) == {"the secret key"}
    assert "the secret key" not in said


def test_no_server(output: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("imgindex.io.retries._DELAYS", (0,))
    assert main(["push", output, "--to", "qdrant", "http://127.0.0.1:1"]) == 3
    said = "".join(capfd.readouterr())
    assert re.fullmatch(
        r"imgindex: Qdrant at http://127\.0\.0\.1:1 does not answer: .*refused; see .*\n", said
    )


class TestMessages:
    @pytest.mark.parametrize(
        "uri",
        [
            "postgresql://me:hidden@host/db", "https://me:hidden@host:6333", "host=h password=hidden",
            "http://host?api_key=hidden", "postgresql://host/db?sslpassword=hidden",
            "me:hidden@host/db",
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("to", TARGETS)
    def test_a_password_in_the_address(
        self, to: str, uri: str, output: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["push", output, "--to", to, uri]) == 2
        said = capsys.readouterr().err
        variable = {"milvus": "MILVUS_TOKEN", "pgvector": "PGPASSWORD", "qdrant": "QDRANT_API_KEY"}[to]
        assert said == (
            f"imgindex: the address of {to} holds a password or a key, which logs and other users may see; "
            f"leave it out and set the environment variable {variable}\n"
        )

    @pytest.mark.parametrize("key", ["hidden\n", "hid\rden", "hidden\udce9", "hiddén"])
    def test_a_key_that_no_request_can_hold_is_not_repeated(
        self,
        key: str,
        server: str,
        output: str,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.undo()
        monkeypatch.setenv("QDRANT_API_KEY", key)
        assert main(["push", output, "--to", "qdrant", server]) == 2
        said = "".join(capfd.readouterr())
        assert re.fullmatch(r"imgindex: QDRANT_API_KEY holds a .*; set it anew\n", said)

    @pytest.mark.parametrize("uri", ["postgresql://me@127.0.0.1:1/db", "host=127.0.0.1 port=1 user=me"])
    def test_an_address_with_a_user_alone(self, uri: str, output: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("imgindex.io.retries._DELAYS", ())
            # Where the extra is missing, that is told.
            with pytest.raises(
                (OutputError, MachineError), match=r"does not answer|needs the extra pgvector"
            ):
                imgindex.push(output, "pgvector", uri)

    def test_a_server_without_http_is_not_taken_for_a_folder(
        self, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UsageError, match=r"if it is a server, write http://localhost:6333"):
            imgindex.push(output, "qdrant", "localhost:6333")
        assert not Path("localhost:6333").exists()

    @pytest.mark.parametrize("place", ["index", "index/qdrant", "photos"])
    def test_a_folder_of_something_else(
        self, place: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.undo()
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "mine.png").write_bytes(b"")
        before = sorted(tmp_path.rglob("*"))
        expected = "holds mine.png and no database" if place == "photos" else "lies in the index"
        with pytest.raises(UsageError, match=expected):
            imgindex.push(output, "qdrant", str(tmp_path / place))
        assert sorted(tmp_path.rglob("*")) == before

    def test_a_dry_run_and_a_search_make_no_folder(
        self, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.undo()
        folder = str(tmp_path / "new")
        assert main(["push", output, "--to", "qdrant", folder, "--dry_run"]) == 0
        assert f"imgindex would lead to imgindex_{generation(1)[:8]}" in capsys.readouterr().out
        assert main(["search", "--from", "qdrant", folder, "x.png"]) == 3
        assert "holds no database of Qdrant; `imgindex push` makes it" in capsys.readouterr().err
        assert not Path(folder).exists()

    @pytest.mark.parametrize(
        ("options", "message"),
        [({"keep": 0}, "--keep is 0"), ({"collection": "my-photos"}, "at most 229 letters")],
    )
    def test_a_dry_run_checks_arguments_also_where_there_is_no_folder_yet(
        self,
        options: dict[str, Any],
        message: str,
        output: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.undo()
        with pytest.raises(UsageError, match=message):
            imgindex.push(output, "qdrant", str(tmp_path / "new"), dry_run=True, **options)

    @pytest.mark.parametrize("uri", ["", " ", "http://", "https://:443/"])
    @pytest.mark.parametrize("to", ["milvus", "qdrant"])
    def test_an_address_of_nothing_is_not_the_current_folder(
        self, to: str, uri: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UsageError, match=re.escape(f"{uri!r}, which names neither a host nor a folder")):
            imgindex.push(output, to, uri)
        assert sorted(tmp_path.rglob("*")) == before

    def test_a_file_in_the_place_of_a_folder(
        self, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.undo()
        (tmp_path / "mine").write_text("mine")
        with pytest.raises(UsageError, match="mine is a file, and Qdrant keeps a database in a folder"):
            imgindex.push(output, "qdrant", str(tmp_path / "mine"))
        assert (tmp_path / "mine").read_text() == "mine"

    @pytest.mark.parametrize("damaged", ["meta.json", "storage.sqlite"])
    @pytest.mark.parametrize("content", [b"", b"{", b"{}", b"no database" * 1000])
    def test_a_damaged_folder(
        self, damaged: str, content: bytes, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.undo()
        folder = tmp_path / "qdrant"
        imgindex.push(output, "qdrant", str(folder))
        (found,) = folder.rglob(damaged)
        found.write_bytes(content)
        with pytest.raises(OutputError, match=r"Qdrant|that were pushed"):
            imgindex.push(output, "qdrant", str(folder))

    def test_a_full_disk_of_the_local_mode(
        self,
        output: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.undo()

        def full(*given: Any, **named: Any) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(qdrant_client.QdrantClient, "upsert", full)
        assert main(["push", output, "--to", "qdrant", str(tmp_path / "qdrant")]) == 3
        assert capsys.readouterr().err == (
            f"imgindex: Qdrant at {tmp_path / 'qdrant'} cannot be read or written: database or disk is full\n"
        )

    def test_an_empty_name_is_no_generation(self, output: str, target: QdrantTarget) -> None:
        with pytest.raises(UsageError, match="'' is no generation's name"):
            push(output, generation="")

    def test_an_extra_that_is_missing(self, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "imgindex.sinks.databases.qdrant")
        monkeypatch.setitem(sys.modules, "qdrant_client", None)
        with pytest.raises(
            MachineError, match=r"qdrant needs the extra qdrant: pip install 'imgindex\[qdrant\]'"
        ):
            push(output)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"collection": "my-photos"}, "--collection is 'my-photos'; expected at most 229 letters"),
            ({"collection": "7photos"}, "the first is no digit"),
            ({"collection": "x" * 230}, "expected at most 229 letters"),
            ({"keep": 0}, "--keep is 0; expected at least 1"),
            ({"batch_rows": 0}, "--batch_rows is 0; expected from 1 to 4096"),
            ({"batch_rows": 4097}, "--batch_rows is 4097; expected from 1 to 4096"),
            ({"generation": "7"}, "'7' is no generation's name"),
            ({"generation": generation(7)}, f"index has no generation {generation(7)}, or no longer"),
        ],
    )
    def test_what_does_not_fit(
        self, options: dict[str, Any], message: str, output: str, target: QdrantTarget
    ) -> None:
        with pytest.raises(UsageError, match=re.escape(message)):
            push(output, **options)
        assert target.collections() == set()

    def test_an_unknown_database(self, output: str) -> None:
        with pytest.raises(UsageError, match="'redis' is no database to push to; expected one of "):
            imgindex.push(output, "redis", "memory")

    def test_more_dimensions_than_a_database_takes(
        self, output: str, target: QdrantTarget, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(InMemory, "most_dims", 5)
        with pytest.raises(
            UsageError, match="the vectors have 6 dimensions, and Qdrant at memory can index 5"
        ):
            push(output)

    def test_a_uri_that_is_longer_than_a_database_takes(
        self, output: str, target: QdrantTarget, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(InMemory, "longest_uri", 8)
        with pytest.raises(OutputError, match=r"the uri g1/00\.jpg… has 9 bytes, and a key in .* at most 8"):
            push(output)
        assert target.collections() == set()

    def test_a_folder_that_is_open_elsewhere(self, output: str, tmp_path: Path) -> None:
        client = qdrant_client.QdrantClient(path=str(tmp_path / "qdrant"))
        with pytest.raises(
            OutputError, match="is open in another process, and Qdrant's local mode takes one"
        ):
            imgindex.push(output, "qdrant", str(tmp_path / "qdrant"))
        client.close()


class TestTransform:
    """`PushGeneration` itself needs a server; see `TransformContract`."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("milvus", "here.db"), "here.db is a folder, which one process writes to; give the address of"),
            (("qdrant", "here"), "here is a folder, which one process writes to; give the address of"),
            (("redis", "http://host"), "'redis' is no database to push to"),
            (("qdrant", "https://me:hidden@host"), "holds a password or a key"),
            (
                ("qdrant", "http://host", "photos", 1, None, None, "ivf"),
                "--index_kind is 'ivf'; qdrant has hnsw",
            ),
        ],
    )
    def test_what_does_not_fit_is_told_before_the_pipeline_runs(
        self, arguments: tuple[Any, ...], message: str, output: str
    ) -> None:
        with pytest.raises(UsageError, match=message):
            imgindex.PushGeneration(output, *arguments)


class TestCommand:
    def test_what_it_says(
        self, output: str, target: QdrantTarget, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def said(*arguments: str) -> str:
            assert (
                main(["push", output, "--to", "qdrant", "memory", "--collection", "photos", *arguments]) == 0
            )
            return capsys.readouterr().out

        one, two = collection(1), collection(2)
        first = f"photos would lead to {one}: 12 vectors of 6 dimensions, of generation {generation(1)}\n"
        assert said("--dry_run") == first
        assert target.collections() == set()
        assert said() == first.replace("would lead", "leads")
        assert said() == f"photos leads to generation {generation(1)} already; nothing to push\n"
        publish_vectors(output, generation(2), ["a.jpg", "b.jpg"], VECTORS[:2])
        second = (
            f"photos would lead to {two}: 2 vectors of 6 dimensions, of generation {generation(2)}; before, "
            f"it led to {one}\nwould delete {one}\n"
        )
        assert said("--dry-run", "--keep", "1") == second
        assert target.leads_to("photos") == one
        assert said("--keep", "1") == second.replace("would lead", "leads").replace("would delete", "deleted")

    def test_a_folder_of_the_local_mode(self, output: str, tmp_path: Path) -> None:
        folder = str(tmp_path / "qdrant")
        assert main(["push", output, "--to", "qdrant", folder]) == 0
        client = qdrant_client.QdrantClient(path=folder)
        assert client.count("imgindex").count == 12
        client.close()


def test_the_example_of_beams_own_writers(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("apache_beam.ml.rag.ingestion.qdrant", reason="needs a newer Beam")
    publish_vectors(output, generation(2), [f"g2/{n:02}.jpg" for n in range(30)], VECTORS[:30], shards=2)
    monkeypatch.chdir(tmp_path)
    imgindex.export(output, "npy", "embeddings")
    page = (Path(__file__).parents[2] / "docs" / "push.md").read_text()
    (example,) = (b for b in re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S) if "by-beam" in b)
    exec(compile(example, "docs/push.md", "exec"), {})
    with contextlib.closing(qdrant_client.QdrantClient(path="by-beam")) as client:
        found = client.query_points("images", query=VECTORS[7].tolist(), using="dense", limit=1).points
        assert (client.count("images").count, found[0].payload["uri"]) == (30, "g2/07.jpg")
