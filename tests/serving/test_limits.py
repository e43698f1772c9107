"""Limits: whoever sends too much, too slowly or too often is told so, and others are answered meanwhile."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from imgindex.serving.app import asgi_app
from imgindex.serving.service import Service
from imgindex.serving.settings import ServiceSettings


@contextlib.asynccontextmanager
async def running(folder: Path, settings: ServiceSettings) -> AsyncIterator[tuple[Any, httpx.AsyncClient]]:
    """A service in this event loop, and a client of it."""
    app = asgi_app(folder / "index", settings)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield app, client


def reason(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["reason"]


async def hold(gate: threading.Event, begun: asyncio.Event) -> Callable[..., Any]:
    """A function for a thread that waits for `gate`, and says that it has begun."""
    loop = asyncio.get_running_loop()

    def wait(*_: Any) -> None:
        loop.call_soon_threadsafe(begun.set)
        gate.wait()

    return wait


async def hold_decoding(monkeypatch: pytest.MonkeyPatch, gate: threading.Event, begun: asyncio.Event) -> None:
    """Has images wait for `gate` before they are decoded, and say in `begun` that they are about to be."""
    wait, decode = await hold(gate, begun), Service._decode
    monkeypatch.setattr(Service, "_decode", lambda self, *rest: (wait(), decode(self, *rest))[1])


def test_a_body_that_is_too_large_is_refused_before_it_is_read(folder: Path) -> None:
    async def run() -> None:
        sent = 0

        async def body() -> AsyncIterator[bytes]:
            nonlocal sent
            for _ in range(1000):
                sent += 1000
                yield bytes(1000)

        async with running(folder, ServiceSettings(max_bytes=5000)) as (_, client):
            headers = {"content-type": "application/json"}
            assert reason(await client.post("/search", content=body(), headers=headers)) == (413, "too_large")
            assert sent <= 5 * 5000 + 2000  # what a client sends before it reads is taken from it
            fits = await client.post("/search", json={"uri": "a/02.png"})
            assert fits.status_code == 200

    asyncio.run(run())


def test_more_bytes_than_are_held_at_once_are_told_to_come_back(folder: Path) -> None:
    async def run() -> None:
        gate = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield b"{" + bytes(900)
            await gate.wait()

        headers = {"content-type": "application/json"}
        async with running(folder, ServiceSettings(max_bytes=1000)) as (_, client):
            held = [
                asyncio.create_task(client.post("/search", content=body(), headers=headers))
                for _ in range(18)
            ]
            refused, _ = await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
            assert {reason(each.result()) for each in refused} == {(429, "busy")}
            gate.set()
            assert 400 in {answer.status_code for answer in await asyncio.gather(*held)}
            assert (await client.post("/search", json={"uri": "a/02.png"})).status_code == 200

    asyncio.run(run())


def test_a_form_may_not_hold_more_files_than_are_allowed(folder: Path) -> None:
    async def run() -> None:
        async with running(folder, ServiceSettings(max_images=2)) as (_, client):
            files = [("image", ("x", b"x"))] * 3
            assert (await client.post("/search", files=files)).status_code == 400

    asyncio.run(run())


def test_a_body_that_comes_too_slowly_is_given_up(folder: Path) -> None:
    async def run() -> None:
        async def body() -> AsyncIterator[bytes]:
            yield b"{"
            await asyncio.Event().wait()

        async with running(folder, ServiceSettings(seconds=0.2)) as (_, client):
            slow = client.post("/search", content=body(), headers={"content-type": "application/json"})
            others = client.get("/items/a/02.png")
            slow_answer, other = await asyncio.gather(slow, others)
            assert reason(slow_answer) == (408, "slow")
            assert other.status_code == 200

    asyncio.run(run())


def test_more_requests_than_are_worked_on_at_once_are_told_to_come_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        gate, begun = threading.Event(), asyncio.Event()
        await hold_decoding(monkeypatch, gate, begun)
        image = {"image": (folder / "photos/a/02.png").read_bytes()}
        async with running(folder, ServiceSettings(max_requests=1)) as (_, client):
            first = asyncio.create_task(client.post("/search", files=image))
            await begun.wait()
            refused = await client.post("/search", files=image)
            assert reason(refused) == (429, "busy")
            assert int(refused.headers["retry-after"]) >= 1
            assert (await client.get("/healthz")).status_code == 200
            gate.set()
            assert (await first).status_code == 200
            assert (await client.post("/search", files=image)).status_code == 200

    asyncio.run(run())


def test_an_answer_that_takes_too_long_is_given_up_and_gives_its_place_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        gate, begun = threading.Event(), asyncio.Event()
        wait = await hold(gate, begun)
        with monkeypatch.context() as patch:
            patch.setattr(Service, "_decode", wait)
            image = {"image": (folder / "photos/a/02.png").read_bytes()}
            async with running(folder, ServiceSettings(max_requests=1, seconds=0.3)) as (_, client):
                late = await client.post("/search", files=image)
                assert reason(late) == (503, "timeout")
                assert "retry-after" in late.headers
                assert (await client.get("/items/a/02.png")).status_code == 200
                gate.set()

    asyncio.run(run())


def test_the_event_loop_goes_on_while_an_image_is_decoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        gate, begun = threading.Event(), asyncio.Event()
        await hold_decoding(monkeypatch, gate, begun)
        image = {"image": (folder / "photos/a/02.png").read_bytes()}
        async with running(folder, ServiceSettings()) as (_, client):
            held = asyncio.create_task(client.post("/search", files=image))
            await begun.wait()
            for path in ("/healthz", "/items/a/02.png", "/thumbnails/b/03.png", "/metrics"):
                assert (await client.get(path)).status_code == 200
            assert (await client.post("/search", data={"uri": "a/02.png"})).status_code == 200
            gate.set()
            assert (await held).status_code == 200

    asyncio.run(run())


def test_what_fails_by_a_bug_is_told_without_details(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        def fail(*_: Any) -> None:
            raise KeyError("a secret")

        monkeypatch.setattr(Service, "_row", fail)
        async with running(folder, ServiceSettings()) as (_, client):
            answer = await client.get("/items/a/02.png")
            assert reason(answer) == (500, "internal")
            assert "secret" not in answer.text
            assert 'reason="internal",route="items"' in (await client.get("/metrics")).text

    asyncio.run(run())


def test_json_of_too_many_values_is_not_read(folder: Path) -> None:
    async def run() -> None:
        async with running(folder, ServiceSettings(max_vectors=2)) as (_, client):
            headers = {"content-type": "application/json"}
            content = json.dumps({"uri": [0] * 100_000})
            for path in ("/search", "/knn-service"):
                answer = await client.post(path, content=content, headers=headers)
                assert reason(answer) == (413, "too_large")

    asyncio.run(run())
