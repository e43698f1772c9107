"""The service follows what is published: no answer fails or is mixed, and nothing that is damaged answers."""

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from relocated import relocate
from served_index import build
from starlette.testclient import TestClient

from imgindex.errors import OutputError
from imgindex.generations.layout import Output, current_name, make_current
from imgindex.generations.prune import prune
from imgindex.serving import live_index
from imgindex.serving.app import asgi_app
from imgindex.serving.live_index import LiveIndex


@pytest.fixture(scope="module")
def both(folder: Path, tmp_path_factory: pytest.TempPathFactory, image_bytes: Callable[..., bytes]) -> Path:
    """A folder with an index of two generations; the second one has one image more, `a/new.png`."""
    both = tmp_path_factory.mktemp("both") / "copy"
    relocate(folder, both)
    (both / "photos/a/new.png").write_bytes(image_bytes(99))
    build(both)
    return both


@pytest.fixture
def output(both: Path, tmp_path: Path) -> Output:
    """An index of two generations, the first of which is live."""
    shutil.copytree(both / "index", tmp_path / "index")
    output = Output(str(tmp_path / "index"))
    make_current(output, names(output)[0])
    return output


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_index, "_LOCAL_SECONDS", 0.02)


def names(output: Output) -> list[str]:
    return sorted(path.name for path in Path(output.root, "generations").iterdir())


def until(happens: Callable[[], Any]) -> None:
    """Waits until something happens, which a test that hangs says."""
    ticks = threading.Event()
    while not happens():
        ticks.wait(0.01)


@pytest.fixture
def client(output: Output) -> Iterator[TestClient]:
    with TestClient(asgi_app(output.root)) as client:
        yield client


def test_a_publish_is_followed_and_a_rollback_too(output: Output, client: TestClient) -> None:
    first, second = names(output)
    assert client.get("/items/a/new.png").status_code == 404
    for name, status in ((second, 200), (first, 404)):
        make_current(output, name)
        until(lambda name=name: client.get("/readyz").json()["generation"] == name)
        assert client.get("/items/a/new.png").status_code == status
        assert f'generation="{name}"' in client.get("/metrics").text


def test_no_answer_fails_or_is_mixed_while_generations_change(
    output: Output, client: TestClient, both: Path
) -> None:
    images = dict(zip(names(output), (13, 14), strict=True))
    image = (both / "photos/a/02.png").read_bytes()
    answers: list[tuple[str, str, int]] = []
    stop = threading.Event()

    def ask(what: dict[str, Any]) -> None:
        while not stop.is_set():
            found = client.post("/search", params={"k": 1000}, **what)
            content = found.json()
            assert found.headers["imgindex-generation"] == content["generation"]
            answers.append(
                (str(found.status_code), content["generation"], len(content["results"][0]["neighbors"]))
            )

    threads = [
        threading.Thread(target=ask, args=[what])
        for what in (
            {"data": {"uri": "b/01.png"}},
            {"files": {"image": image}},
            {"json": {"vectors": [[0.5] * 6]}},
        )
    ]
    for thread in threads:
        thread.start()
    for turn in range(10):
        name = names(output)[(turn + 1) % 2]
        make_current(output, name)
        before = len(answers)
        until(lambda name=name, before=before: any(answer[1] == name for answer in answers[before:]))
    stop.set()
    for thread in threads:
        thread.join()
    assert {answer[1] for answer in answers} == set(images)
    for status, generation, count in answers:
        assert (status, count) == ("200", images[generation])


def test_a_damaged_generation_never_answers(output: Output, client: TestClient) -> None:
    first, second = names(output)
    shard = next(Path(output.generation(second), "index").iterdir())
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    make_current(output, second)
    until(lambda: client.get("/info").json()["trouble"])
    assert client.get("/readyz").json() == {
        "status": "an older generation answers; see the log", "generation": first,
    }  # fmt: skip
    assert client.post("/search", data={"uri": "a/02.png"}).json()["generation"] == first
    assert "imgindex_generation_trouble 1.0" in client.get("/metrics").text


def test_a_generation_that_is_mended_answers(
    output: Output, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_index, "_RETRY_SECONDS", 0.05)
    second = names(output)[1]
    manifest = Path(output.manifest(second))
    whole = manifest.read_bytes()
    manifest.write_bytes(b"{}")
    make_current(output, second)
    until(lambda: client.get("/info").json()["trouble"])
    manifest.write_bytes(whole)
    until(lambda: client.get("/readyz").json() == {"status": "ok", "generation": second})


@pytest.mark.parametrize("content", [None, b"", b"nonsense\n", b"20200101T000000Z-01234567\n"])
def test_without_a_live_generation_the_last_one_goes_on(
    content: bytes | None, output: Output, client: TestClient
) -> None:
    current = Path(output.current)
    before = client.get("/readyz").json()["generation"]
    current.unlink()
    if content is not None:
        current.write_bytes(content)
        until(lambda: client.get("/info").json()["trouble"])
    answer = client.post("/search", data={"uri": "a/02.png"})
    assert (answer.status_code, answer.json()["generation"]) == (200, before)


def test_what_was_pruned_answers_to_its_end(output: Output) -> None:
    live = LiveIndex(output.root)
    held = live.current
    make_current(output, names(output)[1])
    prune(output.root, keep=1, grace_seconds=0)
    assert not Path(output.generation(held.generation)).exists()
    row = held.opened.find("a/02.png")
    assert row is not None
    assert row[0]["label"] == "a"
    live.look()
    assert live.current.generation == current_name(output)


def test_the_engine_is_loaded_once_for_all_generations_that_have_it(output: Output) -> None:
    live = LiveIndex(output.root)
    engines = live.current.engines
    make_current(output, names(output)[1])
    live.look()
    assert live.current.engines is engines


def test_an_output_without_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds no index"):
        LiveIndex(str(tmp_path))
