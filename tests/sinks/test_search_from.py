"""`imgindex search --from`: the answers of the index, out of a database."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labeled_photos import write_photos
from vector_outputs import publish_vectors

from imgindex.cli import main

qdrant_client = pytest.importorskip("qdrant_client", reason="needs the extra qdrant")
from imgindex.sinks.databases import qdrant  # noqa: E402

SETTINGS = ["--set", "backbone.name=pixels", "--set", "publish.min_recall=0", "--set", "pca.dims=6"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, image_bytes: Callable[..., bytes]) -> Path:
    folder = tmp_path_factory.mktemp("from") / "photos"
    write_photos(folder, image_bytes)
    for name in ("copy.png", "z/copy.png"):
        copy = folder / name
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes((folder / "b" / "01.png").read_bytes())
    return folder


@pytest.fixture(scope="module")
def client() -> qdrant_client.QdrantClient:
    return qdrant_client.QdrantClient(":memory:")


@pytest.fixture(autouse=True)
def _in_memory(client: qdrant_client.QdrantClient, monkeypatch: pytest.MonkeyPatch) -> None:
    class InMemory(qdrant.Qdrant):
        def close(self) -> None:
            pass

    monkeypatch.setattr(qdrant, "connect", lambda uri, make: InMemory(uri, client))


@pytest.fixture(scope="module")
def output(photos: Path, client: qdrant_client.QdrantClient) -> Path:
    """An index that has been pushed."""
    output = photos.parent / "index"
    assert main(["build", "--input", str(photos), "--output", str(output), *SETTINGS]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qdrant, "connect", lambda uri, make: qdrant.Qdrant(uri, client))
        patch.setattr(client, "close", lambda: None)
        assert main(["push", str(output), "--to", "qdrant", "memory"]) == 0
    return output


Search = Callable[..., tuple[int, str, str]]


@pytest.fixture
def search(capsys: pytest.CaptureFixture[str]) -> Search:
    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["search", *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def known(text: str) -> Any:
    """The answers in JSON, but for what a database does not know."""
    answers = json.loads(text)
    for answer in answers:
        for neighbor in answer["neighbors"]:
            del neighbor["shard"], neighbor["item"], neighbor["copies"]
            neighbor["similarity"] = pytest.approx(neighbor["similarity"], abs=1e-5)
            neighbor["distance"] = pytest.approx(neighbor["distance"], abs=3e-3)
    return answers


def known_of_index(text: str) -> Any:
    """The same of the answers of an index, as they are."""
    answers = json.loads(text)
    for answer in answers:
        answer.pop("known", None)
        for neighbor in answer["neighbors"]:
            del neighbor["shard"], neighbor["item"], neighbor["copies"]
    return answers


@pytest.mark.long
def test_json_is_that_of_the_index(output: Path, photos: Path, search: Search) -> None:
    queries = [photos / "a" / "00.png", photos / "b"]
    code, found, _ = search("--from", "qdrant", "memory", *queries, "-k", 5, "--json")
    assert code == 0
    _, exact, _ = search(output, *queries, "-k", 5, "--json", "--exact")
    assert known(found) == known_of_index(exact)
    assert all(n["copies"] is None for answer in json.loads(found) for n in answer["neighbors"])


@pytest.mark.parametrize(
    ("flags", "k"),
    [(["--exact"], 14), (["--distinct"], 5), (["--exclude_self"], 14), (["--distinct", "--exclude_self"], 3)],
)
def test_flags_mean_what_they_mean_for_an_index(
    flags: list[str], k: int, output: Path, photos: Path, search: Search
) -> None:
    """Of images that have copies, and of some that have none."""
    queries = [photos / "b" / "01.png", photos / "z" / "copy.png", photos / "a" / "00.png"]
    code, found, _ = search("--from", "qdrant", "memory", *queries, "-k", k, "--json", *flags)
    assert code == 0
    _, exact, _ = search(output, *queries, "-k", k, "--json", "--exact", *flags)
    answers = json.loads(found), json.loads(exact)
    # Which of the copies comes first is open.
    digests = [[[n["sha256"] for n in answer["neighbors"]] for answer in each] for each in answers]
    assert digests[0] == digests[1]
    if k == 14 and "--distinct" not in flags:
        uris = [[sorted(n["uri"] for n in answer["neighbors"]) for answer in each] for each in answers]
        assert uris[0] == uris[1]


def test_a_query_that_has_changed_since_is_left_out_by_its_path(
    output: Path, photos: Path, search: Search, image_bytes: Callable[..., bytes]
) -> None:
    path = photos / "z" / "copy.png"
    before = path.read_bytes()
    path.write_bytes(image_bytes(5))
    try:
        _, found, _ = search("--from", "qdrant", "memory", path, "-k", 14, "--json", "--exclude_self")
    finally:
        path.write_bytes(before)
    (answer,) = json.loads(found)
    names = {"copy.png", "z/copy.png", "b/01.png", "b/05.png"}
    assert {n["uri"] for n in answer["neighbors"]} & names == set()
    assert len(answer["neighbors"]) == 10


def test_the_table_is_that_of_the_index_without_copies(output: Path, photos: Path, search: Search) -> None:
    query = photos / "a" / "00.png"
    code, found, said = search("--from", "qdrant", "memory", query, "-k", 3)
    assert (code, said) == (0, "")
    _, exact, _ = search(output, query, "-k", 3, "--exact")
    expected = [line.split() for line in exact.splitlines()[1:5]]
    assert [line.split() for line in found.splitlines()[1:]] == [row[:2] + row[3:] for row in expected]
    assert expected[0] == ["rank", "cosine", "copies", "path"]


def test_the_page(output: Path, photos: Path, search: Search, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    code, _, _ = search("--from", "qdrant", "memory", photos / "a" / "00.png", "-k", 3, "--html", page)
    assert code == 0
    text = page.read_text()
    assert text.count("<img") == 4
    assert "in Qdrant at memory" in text


def test_queries_that_cannot_be_read(output: Path, search: Search) -> None:
    code, _, said = search("--from", "qdrant", "memory", "nothing.png")
    assert (code, said) == (3, "imgindex: query nothing.png: cannot be read: No such file or directory\n")


def test_an_index_that_has_moved(output: Path, photos: Path, search: Search, tmp_path: Path) -> None:
    moved = shutil.copytree(output, tmp_path / "moved")
    query = photos / "a" / "00.png"
    held = output.rename(output.with_name("away"))
    try:
        code, _, said = search("--from", "qdrant", "memory", query)
        assert code == 3
        assert f"{output} holds no index" in said
        assert "--index INDEX" in said
        assert search("--from", "qdrant", "memory", query, "--index", moved)[0] == 0
    finally:
        held.rename(output)


def test_another_recipe_is_refused(output: Path, photos: Path, search: Search, tmp_path: Path) -> None:
    other = tmp_path / "other"
    publish_vectors(str(other), "20260101T000000Z-00000001", ["x.png"], np.ones((1, 6), np.float32))
    code, _, said = search("--from", "qdrant", "memory", photos / "a" / "00.png", "--index", other)
    assert code == 3
    assert said == (
        f"imgindex: queries would not fit imgindex: it was pushed from another index than {other}, or the "
        "index has changed since; push it again, or say where the index is with --index INDEX\n"
    )


def test_a_refresh_with_the_same_basis_answers_what_was_pushed_before(
    output: Path, photos: Path, search: Search, tmp_path: Path, image_bytes: Callable[..., bytes]
) -> None:
    """Also where the generation that was pushed has been pruned."""
    moved, more = shutil.copytree(output, tmp_path / "moved"), shutil.copytree(photos, tmp_path / "photos")
    (more / "a" / "new.png").write_bytes(image_bytes(77))
    build = ["build", "--input", str(more), "--output", str(moved), *SETTINGS, "--set", "pca.refit=never"]
    assert main(build) == 0
    assert main(["prune", str(moved), "--keep", "1", "--grace", "0s"]) == 0
    query = photos / "a" / "00.png"
    assert search("--from", "qdrant", "memory", query, "--index", moved)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--from", "qdrant", "memory", "x.png", "--collection", "none"], 3,
         "Qdrant at memory has no none; `imgindex push` makes it"),
        (["OUT", "x.png", "--collection", "y"], 2,
         "--collection is the name of what was pushed into a database; it needs --from"),
        (["OUT", "x.png", "--index", "y"], 2,
         "--index says where the index of a database lies; it needs --from"),
        (["--from", "qdrant", "https://me:hidden@host", "x.png"], 2,
         "the address of qdrant holds a password or a key, which logs and other users may see; leave it out "
         "and set the environment variable QDRANT_API_KEY"),
    ],
)  # fmt: skip
def test_messages(arguments: list[str], code: int, message: str, output: Path, search: Search) -> None:
    given = [argument.replace("OUT", str(output)) for argument in arguments]
    assert search(*given) == (code, "", f"imgindex: {message}\n")


def test_the_commands_of_the_docs_that_need_no_server(
    output: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.undo()  # a folder, and not the memory
    monkeypatch.chdir(tmp_path)
    shutil.copytree(output, "index")
    Path("photos/clock").mkdir(parents=True)
    shutil.copy(photos / "a" / "00.png", "photos/clock/clock_003.jpg")
    page = (Path(__file__).parents[2] / "docs" / "push.md").read_text()
    lines = [
        line for block in re.findall(r"^```sh\n(.*?)^```$", page, re.M | re.S) for line in block.splitlines()
    ]
    commands = [line.split() for line in lines if "qdrant-folder" in line]
    assert [command[1] for command in commands] == ["push", "search"]
    for command in commands:
        assert main(command[1:]) == 0
    assert "a/00.png" in capsys.readouterr().out
    (example,) = (b for b in re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S) if "qdrant-folder" in b)
    exec(compile(example, "docs/push.md", "exec"), {})
    assert capsys.readouterr().out.endswith(" 6 14\n")
