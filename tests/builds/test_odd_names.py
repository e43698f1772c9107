"""Files of any name, from the build to the page: indexed, found, opened, and shown so that nothing breaks."""

import json
import os
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

import imgindex
from imgindex.cli import main
from imgindex.text import printable
from imgindex.uris import uri_of

NAMES = [
    b"a b.png", b" .png", b"a\nb.png", b"a\tb\rc.png", b"'single'.png", b'"double".png', b"a\\b.png",
    b"\\xff.png", b"\x1b[31mred\x1b[0m.png", b"\x1b]0;title\x07.png", b"a..b.png", b"...png", b"..png.png",
    b"-k.png",
    b"<img src=x onerror=alert(1)>.png", b"&lt;&amp;.png", b'" onload="x.png', b"{title}.png", b"%00.png",
    "\u200f\u202egnp.png".encode(), "\u2066isolated\u2069.png".encode(), "שלום.png".encode(),
    "猫/猫.png".encode(), "\u0085\u2028.png".encode(), b"\xff.png", b"\xff/\xfe.png", b"caf\xe9.png",
    "café.png".encode(), "\U0010dcff.png".encode(), b"\xf4\x8d\xb3\xff.png", b"x" * 251 + b".png",
    b"\xe9" * 251 + b".png",
]  # fmt: skip
BAD = [b"\xffbad.png", b"bad\n\x1b[31m.png"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, image_bytes: Callable[..., bytes]) -> Path:
    """``photos`` of all names, and an ``index`` of them."""
    folder = tmp_path_factory.mktemp("odd")
    for number, name in enumerate(NAMES):
        path = folder / "photos" / os.fsdecode(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image_bytes(number, (30 + number, 25)))
        except OSError:
            pytest.skip("this filesystem takes UTF-8 names only")
    for name in BAD:
        (folder / "photos" / os.fsdecode(name)).write_bytes(b"no image")
    settings = [
        "backbone.name=MobileNetV2", "backbone.weights=none", "backbone.image_size=32",
        "engine.precision=float32", "pca.dims=8", "publish.min_recall=0", "publish.max_failure_rate=0.1",
        'images.exclude=["!.*"]',  # names that begin with a dot are hidden ones, and these are wanted
    ]  # fmt: skip
    arguments = ["--input", str(folder / "photos"), "--output", str(folder / "index")]
    assert main(["build", *arguments, *(word for value in settings for word in ("--set", value))]) == 0
    return folder


@pytest.fixture(scope="module")
def index(folder: Path) -> imgindex.Index:
    return imgindex.Index.open(folder / "index")


URIS = [uri_of(os.fsdecode(name)) for name in NAMES]


def paths(folder: Path) -> list[str]:
    return [str(folder / "photos" / os.fsdecode(name)) for name in NAMES]


def test_all_are_indexed_and_open_by_their_uris(folder: Path, index: imgindex.Index) -> None:
    ledger = index.manifest["ledger"]
    assert (ledger["indexed"], ledger["failed"]) == (len(NAMES), len(BAD))
    for uri, result in zip(URIS, index.search(paths(folder), k=1), strict=True):
        (neighbor,) = result.neighbors
        assert neighbor.uri == uri
        path = Path(index.image_path(uri))
        assert os.fsencode(path) == os.fsencode(folder / "photos") + b"/" + NAMES[URIS.index(uri)]
        assert path.stat().st_size > 0


def test_the_label_is_the_folder_written_as_in_a_uri(folder: Path, index: imgindex.Index) -> None:
    (result,) = index.search([folder / "photos" / os.fsdecode(b"\xff/\xfe.png")], k=1)
    assert result.neighbors[0].label == "\U0010dcff"


def test_failures_are_listed_by_their_uris(index: imgindex.Index) -> None:
    directory = Path(index.output.generation(index.manifest["generation"]))
    (listed,) = index.manifest["failures"]
    rows = [json.loads(line) for line in (directory / listed).read_bytes().splitlines()]
    assert sorted(row["uri"] for row in rows) == sorted(uri_of(os.fsdecode(name)) for name in BAD)


def test_the_table_has_a_line_for_each(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = len(NAMES)
    assert main(["search", str(folder / "index"), *paths(folder), "-k", str(count)]) == 0
    blocks = capsys.readouterr().out.removesuffix("\n").split("\n\n")
    assert len(blocks) == count
    for path, uri, block in zip(paths(folder), URIS, blocks, strict=True):
        lines = block.split("\n")
        assert all(line.isprintable() for line in lines)
        assert lines[:2] == [printable(uri_of(path)), "rank  cosine  copies  path"]
        shown = [line.split(maxsplit=3) for line in (line[:22] + "|" + line[22:] for line in lines[2:-1])]
        assert [int(rank) for rank, *_ in shown] == list(range(1, count + 1))
        assert shown[0][3] == f"|{printable(uri)}"
        assert sorted(name for *_, name in shown) == sorted(f"|{printable(each)}" for each in URIS)
        assert lines[-1] == f"known: the file's bytes are indexed as {printable(uri)}"


def test_a_byte_shows_as_its_number(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "photos" / os.fsdecode(b"caf\xe9.png")
    assert main(["search", str(folder / "index"), str(path), "-k", "1"]) == 0
    first, _, found, known = capsys.readouterr().out.splitlines()
    assert first.endswith(r"/caf\xe9.png")
    assert found.endswith(r"  caf\xe9.png")
    assert known.endswith(r" as caf\xe9.png")


def test_json_has_the_uris(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", str(folder / "index"), *paths(folder), "-k", "1", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [result["neighbors"][0]["uri"] for result in printed] == URIS
    assert [result["query"] for result in printed] == [uri_of(path) for path in paths(folder)]


class Page(HTMLParser):
    """The tags of a page, and the titles and pictures of its figures."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.titles: list[str | None] = []
        self.pictures: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "figure":
            self.titles.append(dict(attrs)["title"])
        if tag == "img":
            self.pictures.append(dict(attrs)["alt"])


def test_the_page_shows_them_all_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main(["search", str(folder / "index"), *paths(folder), "-k", "1", "--html", str(page)]) == 0
    parsed = Page()
    parsed.feed(page.read_bytes().decode())
    names = [uri.rpartition("/")[2] for uri in URIS]
    assert parsed.titles == [title for pair in zip(names, URIS, strict=True) for title in pair]
    # Each is opened by its name, queries and neighbors alike.
    assert parsed.pictures == parsed.titles
    assert not any(name.startswith("on") for name in parsed.attributes)
    assert "script" not in parsed.tags


def test_errors_name_a_query_on_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = os.fsdecode(b"/no/such\n\xff\x1b[31m.png")
    assert main(["search", str(folder / "index"), missing]) == 3
    message = capsys.readouterr().err
    assert message == (
        "imgindex: query /no/such\\n\\xff\\x1b[31m.png: cannot be read: No such file or directory\n"
    )
