"""Listing: which files an input holds, under which uris, and what becomes of those that cannot be read."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packed import tar_of

from imgindex.errors import InputError
from imgindex.inputs.listing import list_images
from imgindex.inputs.selection import Selection
from imgindex.inputs.source import input_root, is_inside
from imgindex.io.filesystem import read_bytes, write_bytes
from imgindex.records import Failure, ImageFile
from imgindex.uris import name_of

SELECTION = Selection((".jpg", ".png"))


def make(directory: Path, *names: str) -> None:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def uris(source: Path | str, selection: Selection = SELECTION) -> list[str]:
    """The uris that `source` holds, sorted; refuses failures, and files that read as another's bytes."""
    listed = list(list_images(str(source), selection))
    assert [item for item in listed if isinstance(item, Failure)] == []
    for item in listed:
        assert read_bytes(item.path).decode().endswith(item.uri.rpartition("/")[2])
    return sorted(item.uri for item in listed)


def failures(source: Path | str) -> list[tuple[str, str, str]]:
    """Uri, stage and reason of the failures that `source` gives, sorted."""
    listed = list_images(str(source), SELECTION)
    return sorted((item.uri, item.stage, item.reason) for item in listed if isinstance(item, Failure))


def test_a_directory_with_all_below_it(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "cats/b.png", "cats/siamese/c.jpg", "cats/notes.txt", "d.jpg.txt", "jpg")
    assert uris(tmp_path) == ["a.jpg", "cats/b.png", "cats/siamese/c.jpg"]
    assert uris(f"{tmp_path}/") == uris(tmp_path)


def test_size_and_version_tell_a_changed_file(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.jpg")
    before = {item.uri: item for item in list_images(str(tmp_path), SELECTION)}
    assert before["a.jpg"] == ImageFile("a.jpg", f"{tmp_path}/a.jpg", 5, before["a.jpg"].version)
    # One nanosecond later: the smallest change that a filesystem can show.
    os.utime(tmp_path / "a.jpg", ns=(0, (tmp_path / "a.jpg").stat().st_mtime_ns + 1))
    after = {item.uri: item for item in list_images(str(tmp_path), SELECTION)}
    assert after["a.jpg"].version != before["a.jpg"].version
    assert after["b.jpg"] == before["b.jpg"]


def test_extensions_are_compared_without_case(tmp_path: Path) -> None:
    make(tmp_path, "a.JPG", "b.Png", "c.jpeg")
    assert uris(tmp_path) == ["a.JPG", "b.Png"]
    assert uris(tmp_path, Selection((".JPEG",))) == ["c.jpeg"]


@pytest.mark.parametrize(
    "name",
    [
        "a b.jpg", "a\nb.jpg", "a\tb.jpg", "'a'.jpg", '"a".jpg', "a\\b.jpg", "ä 猫.jpg", "*?[.jpg",
        "a..b.jpg", "\x1b[31mred.jpg", "\u200f\u202egpj.jpg", "-rf.jpg", "~.jpg",
        "$(a).jpg", f"{'x' * 251}.jpg",
    ],
)  # fmt: skip
def test_odd_names(name: str, tmp_path: Path) -> None:
    make(tmp_path, f"{name[:-4]} /{name}")
    assert uris(tmp_path) == [f"{name[:-4]} /{name}"]


def test_globs(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "x/b.jpg", "x/c.png", "x/deep/d.jpg", "y/e.jpg", "notes.txt")
    assert uris(tmp_path / "*.jpg") == ["a.jpg"]
    assert uris(tmp_path / "*") == ["a.jpg"]
    # Relative to what precedes the first wildcard.
    assert uris(tmp_path / "x/*.jpg") == ["b.jpg"]
    assert uris(tmp_path / "[xy]/?.jpg") == ["x/b.jpg", "y/e.jpg"]
    assert uris(tmp_path / "**/*.jpg") == ["a.jpg", "x/b.jpg", "x/deep/d.jpg", "y/e.jpg"]
    assert uris(tmp_path / "x/**") == ["b.jpg", "c.png", "deep/d.jpg"]
    assert uris(tmp_path / "none*.jpg") == []


def test_no_glob_gives_a_file_twice(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "x/b.jpg", "x/y/c.jpg")
    assert uris(tmp_path / "**/**/*.jpg") == ["a.jpg", "x/b.jpg", "x/y/c.jpg"]


def test_a_directory_named_like_a_glob_is_taken_as_it_is(tmp_path: Path) -> None:
    make(tmp_path, "[ab]*/c.jpg", "[ab]*/d[1]/e.jpg", "a/other.jpg")
    assert uris(tmp_path / "[ab]*") == ["c.jpg", "d[1]/e.jpg"]


def test_relative_and_home_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "photos/x/a.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in ("photos", "./photos/", "photos/../photos", "~/photos", "photos/*/*.jpg"):
        assert uris(source) == ["x/a.jpg"]
        assert input_root(source) == f"{tmp_path}/photos"


def test_a_dangling_link_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x/a.jpg").symlink_to("nowhere.jpg")
    assert failures(tmp_path) == failures(tmp_path / "*/*.jpg") == [("x/a.jpg", "list", "unreadable")]
    (failure,) = list_images(str(tmp_path), SELECTION)
    assert isinstance(failure, Failure)
    assert failure.message == "it is a link that leads nowhere"


def test_a_link_to_itself_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to("b.jpg")
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    assert failures(tmp_path) == [(name, "list", "unreadable") for name in ("a.jpg", "b.jpg")]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(13, "Permission denied"), "permission_denied"),
        (FileNotFoundError(2, "No such file or directory"), "vanished"),
        (OSError(116, "Stale file handle"), "unreadable"),
    ],
)
def test_a_file_that_cannot_be_looked_at(
    error: OSError, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "a.jpg", "b.jpg")
    look = os.stat

    def stat(path: str, **options: object) -> object:
        if str(path).endswith("b.jpg"):
            raise error
        return look(path, **options)

    monkeypatch.setattr(os, "stat", stat)
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    listed = list(list_images(str(tmp_path), SELECTION))
    assert {item.uri: getattr(item, "reason", None) for item in listed} == {"a.jpg": None, "b.jpg": reason}
    assert len(slept) == (4 if reason == "unreadable" else 0)


def test_a_storage_that_is_out_of_order_ends_the_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, *[f"{n:03}.jpg" for n in range(100)])
    look, slept = os.stat, []

    def stat(path: str, **options: object) -> object:
        if int(Path(path).stem if path.endswith(".jpg") else 0) >= 50:
            raise OSError(116, "Stale file handle")
        return look(path, **options)

    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(time, "sleep", slept.append)
    found = []
    with pytest.raises(InputError, match=rf"32 reads in a row.* of {tmp_path}/081.jpg, with Stale file"):
        found.extend(list_images(str(tmp_path), SELECTION))
    assert len(slept) == 4 * 32


def test_a_link_to_a_file_is_that_file(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg")
    (tmp_path / "link.jpg").symlink_to("a.jpg")
    listed = {item.uri: item for item in list_images(str(tmp_path), SELECTION)}
    assert sorted(listed) == ["a.jpg", "link.jpg"]
    assert listed["link.jpg"].size == 5


def test_what_is_no_regular_file_is_a_failure(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")  # to open it would wait for ever
    (tmp_path / "folder.jpg").mkdir()
    make(tmp_path, "folder.jpg/a.jpg")
    assert failures(tmp_path) == [("pipe.jpg", "list", "not_a_file")]
    # A folder that a glob matches is none, whatever it is named.
    assert failures(tmp_path / "*.jpg") == [("pipe.jpg", "list", "not_a_file")]


def test_a_directory_that_is_linked_to_is_listed_once(tmp_path: Path) -> None:
    make(tmp_path, "photos/b/1.jpg", "elsewhere/2.jpg")
    (tmp_path / "photos/a").symlink_to("b")
    (tmp_path / "photos/c").symlink_to("b")
    (tmp_path / "photos/d").symlink_to("../elsewhere")
    assert uris(tmp_path / "photos") == ["a/1.jpg", "d/2.jpg"]


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "x/b.jpg")
    (tmp_path / "x/up").symlink_to("..")
    (tmp_path / "x/self").symlink_to("self")
    assert uris(tmp_path) == ["a.jpg", "x/b.jpg"]


def test_names_that_are_not_utf8_have_uris_that_are(tmp_path: Path) -> None:
    names = [b"\xff/b.jpg", b"c\xe9.jpg", "\U0010dce9.jpg".encode(), "é.jpg".encode()]
    try:
        (tmp_path / os.fsdecode(b"\xff")).mkdir()
    except OSError:
        pytest.skip("this filesystem takes UTF-8 names only")
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(name)
    for source in (f"{tmp_path}", f"{tmp_path}/**"):
        listed = [item for item in list_images(source, SELECTION) if isinstance(item, ImageFile)]
        assert {item.uri: read_bytes(item.path) for item in listed} == {
            "\U0010dcff/b.jpg": names[0],
            "c\U0010dce9.jpg": names[1],
            "\U0010dcf4\U0010dc8d\U0010dcb3\U0010dca9.jpg": names[2],
            "é.jpg": names[3],
        }
        assert [item.path for item in listed] == [f"{tmp_path}/{name_of(item.uri)}" for item in listed]


def test_missing_or_no_directory(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg")
    with pytest.raises(InputError, match="missing does not exist"):
        list(list_images(f"{tmp_path}/missing", SELECTION))
    with pytest.raises(InputError, match=r"a\.jpg is a file; give a directory"):
        list(list_images(f"{tmp_path}/a.jpg", SELECTION))


def test_a_directory_that_cannot_be_read_ends_the_listing(
    tmp_path: Path, forbid_listing: Callable[[str], None]
) -> None:
    make(tmp_path, "a.jpg", "locked/b.jpg")
    forbid_listing("locked")
    with pytest.raises(InputError, match=r"cannot list .*locked: Permission denied"):
        list(list_images(str(tmp_path), SELECTION))


def test_another_filesystem(memory: dict[str, tuple[bytes, float]]) -> None:
    names = [
        "in/a.jpg",
        "in/x/b.PNG",
        "in/x/y/c.jpg",
        "in/notes.txt",
        "in/e f\n'g.jpg",
        "inside.jpg",
        "other/d.jpg",
    ]
    for number, name in enumerate(names):
        memory[f"mem://bucket/{name}"] = name.encode(), float(number)
    everything = ["a.jpg", "e f\n'g.jpg", "x/b.PNG", "x/y/c.jpg"]
    assert uris("mem://bucket/in") == uris("mem://bucket/in/") == uris("mem://bucket/in/**") == everything
    assert uris("mem://bucket/in/*.jpg") == ["a.jpg", "e f\n'g.jpg"]
    assert uris("mem://bucket/*/*/*") == ["in/x/b.PNG"]
    assert uris("mem://bucket/missing") == []
    first = next(iter(list_images("mem://bucket/in/a*", SELECTION)))
    assert isinstance(first, ImageFile)
    assert (first.path, first.size, read_bytes(first.path)) == ("mem://bucket/in/a.jpg", 8, b"in/a.jpg")
    memory[first.path] = b"in/A.jpg", 99.0
    assert next(iter(list_images("mem://bucket/in/a*", SELECTION))).version != first.version


def test_a_scheme_that_no_filesystem_serves() -> None:
    with pytest.raises(InputError, match="nosuch://bucket"):
        list(list_images("nosuch://bucket/in", SELECTION))


@pytest.mark.parametrize(
    ("path", "root", "inside"),
    [
        ("/photos/index", "/photos", True),
        ("/photos", "/photos", True),
        ("/photos-index", "/photos", False),
        ("/index", "/photos", False),
        ("mem://bucket/in/index", "mem://bucket/in", True),
        ("mem://bucket/in", "mem://bucket/in", True),
        ("mem://bucket/in/", "mem://bucket/in", True),
        ("mem://bucket/index", "mem://bucket/in", False),
        ("/index", "mem://bucket/in", False),
        ("mem://bucket/index", "/", False),
    ],
)
def test_whether_an_output_lies_inside_an_input(path: str, root: str, inside: bool) -> None:
    assert is_inside(path, root) is inside


def test_on_an_object_store_what_looks_like_a_glob_and_exists_is_no_glob(memory: Any) -> None:
    for name in ("photos [2020]/a.jpg", "photos [2020]/shard[1].jpg", "photos 2/b.jpg"):
        write_bytes(f"mem://bucket/{name}", name.encode())
    write_bytes("mem://bucket/shard[1].tar", tar_of({"c.jpg": b"c"}))
    assert uris("mem://bucket/photos [2020]") == ["a.jpg", "shard[1].jpg"]
    assert uris("mem://bucket/photos [2020]/*[[]1].jpg") == ["shard[1].jpg"]
    assert uris("mem://bucket/photos [12]/*.jpg") == ["photos 2/b.jpg"]
    (member,) = list_images("mem://bucket/shard[1].tar", SELECTION)
    assert member.uri == "shard[1].tar/c.jpg"
