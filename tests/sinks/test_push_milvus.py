"""Pushes into Milvus Lite, alone and as a server of two clients; see ``make test-integration``."""

import contextlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from milvus_target import MilvusTarget
from push_contract import VECTORS, KindsContract, TransformContract, collection, faults, generation
from vector_outputs import publish_vectors

from imgindex.cli import main
from imgindex.errors import OutputError
from imgindex.sinks.databases import targets

pytestmark = pytest.mark.integration

__all__ = ["faults"]

pymilvus = pytest.importorskip("pymilvus", reason="needs the extra milvus")


class TestMilvusLite(KindsContract):
    @pytest.fixture
    def target(self, tmp_path: Path) -> Iterator[MilvusTarget]:
        target = MilvusTarget(str(tmp_path / "milvus.db"))
        yield target
        target.client.close()

    @pytest.mark.parametrize(("length", "fits"), [(65_535, True), (65_536, False)])
    def test_a_long_uri(self, length: int, fits: bool, output: str, target: MilvusTarget) -> None:
        publish_vectors(output, generation(1), ["x" * length, "b.jpg"], VECTORS[:2])
        if fits:
            self.push(output, target)
            assert set(target.rows("photos")) == {"x" * length, "b.jpg"}
        else:
            with pytest.raises(
                OutputError, match=r"has 65536 bytes, and a key in Milvus at .* at most 65535"
            ):
                self.push(output, target)
            assert target.collections() == set()

    def test_one_without_a_description_that_holds_nothing_is_made_anew(
        self, output: str, target: MilvusTarget
    ) -> None:
        """As a push leaves it that is killed before it describes it, which for Lite is a step of its own."""
        self.publish(output, 1, 12)
        self.push(output, target)
        self.publish(output, 2, 12)
        schema = pymilvus.MilvusClient.create_schema()
        text = {"datatype": pymilvus.DataType.VARCHAR, "max_length": 99}
        schema.add_field("uri", is_primary=True, **text)
        schema.add_field("label", nullable=True, **text)
        schema.add_field("sha256", **text)
        schema.add_field("width", pymilvus.DataType.INT32)
        schema.add_field("height", pymilvus.DataType.INT32)
        schema.add_field("vector", pymilvus.DataType.FLOAT_VECTOR, dim=3)
        target.client.create_collection(collection(2), schema=schema)
        self.push(output, target)
        assert self.whole(target, 2, 12)

    @pytest.mark.parametrize("kind", ["HNSW", "FLAT"])
    def test_what_another_process_has_pushed_can_be_searched(
        self, kind: str, output: str, tmp_path: Path
    ) -> None:
        """Milvus Lite keeps no collection loaded from one process to the next."""
        self.publish(output, 1, 12)
        uri = str(tmp_path / "lite.db")
        push = [sys.executable, "-m", "imgindex", "push", output, "--to", "milvus", uri, "--index_kind", kind]
        subprocess.run(push, check=True)
        assert subprocess.run(push, check=True, capture_output=True, text=True).stdout == (
            f"imgindex leads to generation {generation(1)} already; nothing to push\n"
        )
        with contextlib.closing(targets.connected("milvus", uri, make=False)) as database:
            collection = database.live("imgindex")
            assert collection is not None
            settings = database.index_kind(kind, 12).search
            ((first, second),) = database.search(collection, VECTORS[3:4] + 1, 2, "angular", settings)
            assert database.fetch(collection, [first.uri])[0].sha256 == first.sha256 != second.sha256

    @pytest.mark.parametrize("token", ["root:hidden\n", "root:hidden\udce9"])
    def test_a_token_that_no_request_can_hold_is_not_repeated(
        self, token: str, output: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        self.publish(output, 1, 12)
        monkeypatch.setenv("MILVUS_TOKEN", token)
        assert main(["push", output, "--to", "milvus", "http://127.0.0.1:1"]) == 2
        said = "".join(capfd.readouterr())
        assert re.fullmatch(r"imgindex: MILVUS_TOKEN holds a .*; set it anew\n", said)

    def test_the_client_of_the_docs(
        self, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.publish(output, 1, 12)
        monkeypatch.chdir(tmp_path)
        push = [sys.executable, "-m", "imgindex", "push", output, "--to", "milvus", "milvus.db"]
        subprocess.run(push, check=True)
        page = (Path(__file__).parents[2] / "docs" / "push.md").read_text()
        (example,) = re.findall(r"```python\n(from pymilvus .*?)```", page, re.DOTALL)
        exec(compile(example, "docs/push.md", "exec"), {})
        assert len(capsys.readouterr().out.splitlines()) == 3

    def test_one_that_another_process_has_open(self, output: str, target: MilvusTarget) -> None:
        self.publish(output, 1, 12)
        push = [sys.executable, "-m", "imgindex", "push", output, "--to", "milvus", target.uri]
        refused = subprocess.run(push, capture_output=True, text=True)
        assert refused.returncode == 3
        assert re.fullmatch(
            r"imgindex: Milvus at .*milvus\.db cannot be opened: another process has it open, .*\n",
            refused.stderr,
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`milvus-lite server`, by its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("milvus")
    process = subprocess.Popen(
        [Path(sys.executable).with_name("milvus-lite"), "server", "--data-dir", folder, "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


class TestServer(KindsContract, TransformContract):
    """`milvus-lite server`, which has several clients here: imgindex, its workers, and the one that looks."""

    @pytest.fixture
    def target(self, server: str) -> Iterator[MilvusTarget]:
        for _ in range(200):
            try:
                target = MilvusTarget(server)
                break
            except pymilvus.MilvusException:  # it is starting
                time.sleep(0.3)
        for name in target.collections():  # of the test before
            target.client.drop_collection(name)
        yield target
        target.client.close()

    def test_killed_at_random_moments(self, output: str, target: MilvusTarget) -> None:
        self.kill_at_random_moments(output, target, 12)


class Strict(pymilvus.MilvusClient):
    """Milvus Lite with the rules of a server, where Lite is laxer: of names, aliases and descriptions."""

    descriptions: ClassVar[dict[str, str]] = {}

    def create_collection(self, collection_name: str, *given: Any, **named: Any) -> None:
        assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", collection_name)
        super().create_collection(collection_name, *given, **named)
        self.descriptions[collection_name] = named["schema"].description

    def describe_collection(self, collection_name: str, *given: Any, **named: Any) -> dict[str, Any]:
        found = super().describe_collection(collection_name, *given, **named)
        return {**found, "description": self.descriptions.get(collection_name, "")}

    def alter_collection_properties(self, *given: Any, **named: Any) -> None:
        raise AssertionError("a server has the description already")

    def create_alias(self, collection_name: str, alias: str, **named: Any) -> None:
        assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", alias)
        super().create_alias(collection_name, alias, **named)

    def alter_alias(self, collection_name: str, alias: str, **named: Any) -> None:
        if alias not in self.list_aliases()["aliases"]:
            raise pymilvus.MilvusException(code=100, message=f"alias not found[alias={alias}]")
        super().alter_alias(collection_name, alias, **named)

    def drop_collection(self, collection_name: str, *given: Any, **named: Any) -> None:
        if self.list_aliases(collection_name)["aliases"]:
            raise pymilvus.MilvusException(code=65535, message="cannot drop the collection via alias")
        super().drop_collection(collection_name, *given, **named)


class TestRulesOfServers(TestMilvusLite):
    @pytest.fixture(autouse=True)
    def _strict(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Strict, "descriptions", {})
        monkeypatch.setattr("imgindex.sinks.databases.milvus.MilvusClient", Strict)


class TestMessages:
    @pytest.mark.parametrize(
        ("uri", "code", "message"),
        [
            ("http://127.0.0.1:1", 3, "Milvus at http://127.0.0.1:1 does not answer: .*; see that it runs"),
            (
                "folder",
                2,
                "folder is no address of Milvus; expected one such as http://host:19530, or a path ",
            ),
            ("none/x.db", 2, "none/x.db cannot be made: .*/none is not there"),
        ],
    )
    def test_what_cannot_be_reached(
        self,
        uri: str,
        code: int,
        message: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("imgindex.io.retries._DELAYS", (0,))
        monkeypatch.setattr("imgindex.sinks.databases.milvus._CONNECT_SECONDS", 1.0)
        publish_vectors("index", generation(1), ["a.jpg", "b.jpg"], VECTORS[:2])
        assert main(["push", "index", "--to", "milvus", uri]) == code
        said = "".join(capfd.readouterr())
        assert re.fullmatch(rf"imgindex: {message}.*\n", said)
