"""Duplicates over HTTP: the groups of `imgindex.duplicates`, found once, while the service goes on."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from served_index import build
from starlette.testclient import TestClient
from test_limits import running

import imgindex
from imgindex.generations.layout import Output, make_current
from imgindex.serving import duplicates
from imgindex.serving.app import asgi_app
from imgindex.serving.duplicates import DuplicateSearch, Parameters
from imgindex.serving.settings import ServiceSettings


def found(client: TestClient, **fields: Any) -> dict[str, Any]:
    """The answer, as soon as it is there."""
    while (answer := client.get("/duplicates", params=fields)).status_code == 202:
        assert int(answer.headers["retry-after"]) >= 1
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


class TestAnswers:
    @pytest.mark.parametrize("fields", [{}, {"threshold": 0.999, "across": "labels"}])
    def test_the_groups_are_those_that_python_finds(
        self, fields: dict[str, Any], client: TestClient, folder: Path
    ) -> None:
        answer = found(client, **fields)
        expected = imgindex.duplicates(folder / "index", **fields)
        assert answer["generation"] == expected.generation
        assert (answer["images"], answer["ungrouped"]) == (expected.images, expected.ungrouped)
        for name in ("exact", "near", "all"):
            counts = getattr(expected, name)
            assert answer[name] == {
                "groups": counts.groups,
                "images": counts.images,
                "surplus": counts.surplus,
            }
        assert answer["group_count"] == len(expected.groups) == len(answer["groups"]) > 0
        for one, other in zip(answer["groups"], expected.groups, strict=True):
            assert (one["kind"], one["least_similarity"]) == (other.kind, other.least_similarity)
            assert (one["why"], one["count"]) == (other.why, len(other.images))
            assert [image["uri"] for image in one["images"]] == [image.uri for image in other.images]
            assert [image["size"] for image in one["images"]] == [image.size for image in other.images]

    def test_the_one_to_keep_comes_first(self, client: TestClient) -> None:
        groups = found(client, threshold=1)["groups"]
        keep, *others = groups[0]["images"]
        assert (keep["uri"], groups[0]["why"]) == ("a/00.png", "shortest path")
        assert [image["uri"] for image in others] == ["b/copy of 00.png"]

    def test_groups_come_in_parts(self, client: TestClient) -> None:
        whole = found(client)["groups"]
        assert len(whole) > 1
        parts = [found(client, offset=offset, limit=1)["groups"] for offset in range(len(whole) + 1)]
        assert [len(part) for part in parts] == [1] * len(whole) + [0]
        assert [group for part in parts for group in part] == whole

    def test_it_says_nothing_of_where_the_index_lies(self, client: TestClient, folder: Path) -> None:
        assert str(folder) not in json.dumps(found(client))

    def test_it_is_as_the_document_describes_it(self, client: TestClient) -> None:
        document = client.get("/openapi.json").json()
        schema = {"$ref": "#/components/schemas/Duplicates", "components": document["components"]}
        jsonschema.validate(found(client), schema)

    @pytest.mark.parametrize(
        "fields",
        [
            {"threshold": "0.79"}, {"threshold": "1.01"}, {"threshold": "nan"}, {"threshold": "x"},
            {"across": "colors"}, {"across": ["labels", "folders"]}, {"limit": ["1", "2"]},
            {"offset": "-1"}, {"limit": "0"}, {"limit": "201"}, {"against": "/etc"},
        ],
    )  # fmt: skip
    def test_fields_that_do_not_fit_are_refused(self, fields: dict[str, Any], client: TestClient) -> None:
        answer = client.get("/duplicates", params=fields)
        assert (answer.status_code, answer.json()["error"]["reason"]) == (400, "bad_request")

    def test_an_index_without_its_store_has_none(self, folder: Path, tmp_path: Path) -> None:
        shutil.copytree(folder, tmp_path / "copy")
        shutil.rmtree(tmp_path / "copy/index/store")
        with TestClient(asgi_app(tmp_path / "copy/index"), raise_server_exceptions=False) as client:
            # Groups by bytes need no store; those by features do.
            while (answer := client.get("/duplicates", params={"threshold": 0.8})).status_code == 202:
                pass
            assert (answer.status_code, answer.json()["error"]["reason"]) == (503, "unavailable")


class TestOnce:
    """Searches take minutes in a large index, so that there is one at a time, and none twice."""

    @pytest.fixture
    def begun(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """The searches that have begun, as they are counted."""
        begun: list[Any] = []
        find = DuplicateSearch._find

        def counted(self: DuplicateSearch, asked: Parameters) -> Any:
            begun.append(asked)
            return find(self, asked)

        monkeypatch.setattr(DuplicateSearch, "_find", counted)
        return begun

    def test_whoever_asks_gets_what_one_search_finds(
        self, folder: Path, begun: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def run() -> None:
            monkeypatch.setattr(duplicates, "_WAIT_SECONDS", 300.0)
            async with running(folder, ServiceSettings()) as (_, client):
                answers = await asyncio.gather(*(client.get("/duplicates") for _ in range(20)))
                assert len({answer.text for answer in answers}) == 1
                assert answers[0].status_code == 200
                await client.get("/duplicates", params={"limit": 1, "threshold": "0.950"})
            assert len(begun) == 1

        asyncio.run(run())

    def test_whoever_gives_up_begins_no_other_and_others_wait(
        self, folder: Path, begun: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def run() -> None:
            monkeypatch.setattr(duplicates, "_WAIT_SECONDS", 0.01)
            async with running(folder, ServiceSettings(max_requests=1)) as (_, client):
                for _ in range(5):
                    waiting = await client.get("/duplicates")
                    assert waiting.status_code == 202
                    assert waiting.json()["status"] == "being looked for"
                busy = await client.get("/duplicates", params={"threshold": 0.9})
                assert (busy.status_code, busy.json()["error"]["reason"]) == (503, "busy")
                assert int(busy.headers["retry-after"]) >= 1
                assert (await client.post("/search", data={"uri": "a/02.png"})).status_code == 200
                await ready(client)
            assert len(begun) == 1

        asyncio.run(run())

    @pytest.mark.long
    def test_another_generation_has_others_and_ends_what_is_looked_for_in_the_old_one(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.copytree(folder / "photos", tmp_path / "photos")
        output = Output(str(tmp_path / "index"))
        first = build(tmp_path)
        shutil.copy(folder / "photos/b/03.png", tmp_path / "photos/b/new.png")
        second = build(tmp_path)
        make_current(output, first)

        async def run() -> None:
            monkeypatch.setattr(duplicates, "_WAIT_SECONDS", 0.01)
            async with running(tmp_path, ServiceSettings()) as (app, client):
                assert (await client.get("/duplicates")).json()["generation"] == first
                make_current(output, second)
                await asyncio.to_thread(app.state.service.live.look)
                answer = await ready(client)
                assert answer["generation"] == second
                assert "b/new.png" in json.dumps(answer["groups"])

        asyncio.run(run())

    def test_what_is_being_looked_for_ends_with_the_service(self, folder: Path) -> None:
        async def run() -> None:
            async with running(folder, ServiceSettings()) as (app, client):
                search = app.state.service._duplicates
                asking = asyncio.create_task(client.get("/duplicates"))
                while search._process is None:
                    await asyncio.sleep(0.01)
            assert search._process.wait(30) is not None
            assert (await asking).status_code == 503

        asyncio.run(run())


async def ready(client: httpx.AsyncClient) -> dict[str, Any]:
    while (answer := await client.get("/duplicates")).status_code == 202:
        await asyncio.sleep(0.05)
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content
