"""Tars as inputs: their members are images as those of a folder, read where they lie."""

import contextlib
import io
import os
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packed import tar_of

from imgindex.inputs.listing import list_images
from imgindex.inputs.selection import Selection
from imgindex.inputs.source import input_root
from imgindex.inputs.tar_format import TarError, each_member
from imgindex.inputs.tar_members import TarFile, images_of, read_image
from imgindex.io import filesystem
from imgindex.io.byte_ranges import read_range
from imgindex.records import Failure, ImageFile
from imgindex.uris import name_of

SELECTION = Selection((".jpg", ".png"))


def contents(source: str) -> dict[str, bytes]:
    """The images of `source` by uri; refuses failures."""
    listed = list(list_images(source, SELECTION))
    assert [item for item in listed if isinstance(item, Failure)] == []
    return {
        item.uri: filesystem.read_bytes(item.path)
        if item.offset is None
        else read_range(item.path, item.offset, item.size)
        for item in listed
        if isinstance(item, ImageFile)
    }


def failures(source: str) -> list[tuple[str, str, str]]:
    """Uri, stage and reason of the failures in `source`."""
    listed = list_images(source, SELECTION)
    return sorted((item.uri, item.stage, item.reason) for item in listed if isinstance(item, Failure))


FILES = {
    "a.jpg": b"a",
    "cats/b.png": b"bb" * 600,
    "./c.jpg": b"",
    "notes.txt": b"no image",
    "d.JPG": b"d" * 512,
}
UNPACKED = {"a.jpg": b"a", "cats/b.png": b"bb" * 600, "c.jpg": b"", "d.JPG": b"d" * 512}


def test_a_tar_is_a_folder(place: str) -> None:
    filesystem.write_bytes(filesystem.join(place, "x/one.tar"), tar_of(FILES))
    filesystem.write_bytes(filesystem.join(place, "x/two.TAR"), tar_of({"a.jpg": b"other"}))
    filesystem.write_bytes(filesystem.join(place, "x/plain.jpg"), b"plain")
    members = {f"one.tar/{name}": data for name, data in UNPACKED.items()}
    everything = {**members, "two.TAR/a.jpg": b"other", "plain.jpg": b"plain"}
    assert contents(filesystem.join(place, "x")) == everything
    assert contents(filesystem.join(place, "x/*")) == everything
    assert contents(filesystem.join(place, "x/*.jpg")) == {"plain.jpg": b"plain"}
    for source in ("x/one.tar", "x/o*.tar", "x/one.t?r"):
        assert contents(filesystem.join(place, source)) == members
        assert input_root(filesystem.join(place, source)) == filesystem.join(place, "x")
    for uri, data in everything.items():
        assert read_image(filesystem.join(place, "x", name_of(uri)), 1 << 20) == data


def test_version_tells_a_changed_tar_and_a_moved_member(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(tar_of({"a.jpg": b"a", "b.jpg": b"b"}))
    os.utime(path, ns=(1, 1))
    versions = {item.uri: item.version for item in list_images(str(tmp_path), SELECTION)}
    path.write_bytes(tar_of({"b.jpg": b"b", "a.jpg": b"a"}))
    os.utime(path, ns=(1, 1))
    moved = {item.uri: item.version for item in list_images(str(tmp_path), SELECTION)}
    assert all(versions[uri] != moved[uri] for uri in versions)
    os.utime(path, ns=(2, 2))
    later = {item.uri: item.version for item in list_images(str(tmp_path), SELECTION)}
    assert all(later[uri] != moved[uri] for uri in versions)


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_long_and_odd_names(format: int, tmp_path: Path) -> None:
    names = ["ä 猫.jpg", os.fsdecode(b"caf\xe9.jpg"), "\n.jpg", f"{'y' * 60}/{'x' * 90}.jpg"]
    if format != tarfile.USTAR_FORMAT:
        names += [f"{'folder/' * 60}a.jpg", f"{'x' * 300}.jpg"]
    files = {name: name.encode("utf-8", "surrogateescape") for name in names}
    (tmp_path / "x.tar").write_bytes(tar_of(files, format))
    found = contents(str(tmp_path))
    assert {name_of(uri): data for uri, data in found.items()} == {
        f"x.tar/{name}": data for name, data in files.items()
    }
    for uri, data in found.items():
        assert read_image(f"{tmp_path}/{name_of(uri)}", 1 << 20) == data


def test_names_do_not_lead_out_of_the_tar(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_of({"../../a.jpg": b"a", "/etc/b.jpg": b"b", "c/../d.jpg": b"d"}))
    assert contents(str(tmp_path)) == {"x.tar/a.jpg": b"a", "x.tar/etc/b.jpg": b"b", "x.tar/d.jpg": b"d"}


def test_of_members_of_one_name_the_last_counts(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_of([("a.jpg", b"old"), ("b.jpg", b"b"), ("a.jpg", b"newer")]))
    status = (tmp_path / "x.tar").stat()
    tar = TarFile("x.tar", f"{tmp_path}/x.tar", status.st_size, "1")
    sizes = {item.uri: item.size for item in images_of(tar, SELECTION.rules()) if isinstance(item, ImageFile)}
    assert sizes == {"x.tar/a.jpg": 5, "x.tar/b.jpg": 1}
    assert read_image(f"{tmp_path}/x.tar/a.jpg", 100) == b"newer"


def test_links_are_failures_and_folders_nothing(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, kind in (
            ("a.jpg", tarfile.SYMTYPE),
            ("b.jpg", tarfile.FIFOTYPE),
            ("c.jpg", tarfile.DIRTYPE),
        ):
            header = tarfile.TarInfo(name)
            header.type, header.linkname = kind, "elsewhere.jpg"
            tar.addfile(header)
    assert failures(str(tmp_path)) == [(f"x.tar/{name}.jpg", "list", "not_a_file") for name in "ab"]
    assert len(list(list_images(str(tmp_path), SELECTION))) == 2
    with pytest.raises(OSError, match="Not a directory"):
        read_image(f"{tmp_path}/x.tar/a.jpg", 100)


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz", ".tar.zst", ".tar"])
def test_a_compressed_tar_is_a_failure(suffix: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / f"x{suffix}", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    assert failures(str(tmp_path)) == [(f"x{suffix}", "list", "compressed_tar")]


def damaged(change: Callable[[bytearray], Any]) -> bytes:
    data = bytearray(tar_of({"a.jpg": b"a" * 700, "b.jpg": b"b" * 700, "c.jpg": b"c" * 700}))
    change(data)
    return bytes(data)


@pytest.mark.parametrize(
    ("change", "reason", "found"),
    [
        (lambda data: data.clear(), "truncated_tar", ""),
        (lambda data: data.__delitem__(slice(100, None)), "truncated_tar", ""),
        (lambda data: data.__delitem__(slice(2000, None)), "truncated_tar", "a"),
        (lambda data: data.__delitem__(slice(2 * 1536, None)), "truncated_tar", "ab"),
        (lambda data: data.__delitem__(slice(2 * 1536 + 200, None)), "truncated_tar", "ab"),
        (lambda data: data.__setitem__(slice(1536, 1540), b"????"), "damaged_tar", "a"),
        (lambda data: data.__setitem__(slice(0, 4), b"????"), "damaged_tar", ""),
        (lambda data: data.__setitem__(slice(1536, 2048), b"\xff" * 512), "damaged_tar", "a"),
    ],
)
def test_a_damaged_tar_gives_what_is_before(
    change: Callable[[bytearray], Any], reason: str, found: str, tmp_path: Path
) -> None:
    (tmp_path / "x.tar").write_bytes(damaged(change))
    assert failures(str(tmp_path)) == [("x.tar", "list", reason)]
    images = [item.uri for item in list_images(str(tmp_path), SELECTION) if isinstance(item, ImageFile)]
    assert images == [f"x.tar/{name}.jpg" for name in found]


def test_a_header_that_promises_much_takes_no_memory(tmp_path: Path) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    path = tmp_path / "x.tar"
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT))
    os.truncate(path, 1 << 34)  # a hole
    tracemalloc.start()
    assert failures(str(tmp_path)) == [("x.tar", "list", "damaged_tar")]
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


@given(st.binary(max_size=600), st.integers(0, 4000), st.integers(0, 4000))
def test_no_bytes_do_more_than_end_the_tar(noise: bytes, at: int, end: int) -> None:
    data = bytearray(
        tar_of({"a.jpg": b"a", "x" * 200 + ".jpg": b"b" * 700, "ä.jpg": b"c"}, tarfile.PAX_FORMAT)
    )
    data[at : at + len(noise)] = noise
    del data[end:]
    members = []
    with contextlib.suppress(TarError):
        members.extend(each_member(io.BytesIO(data), len(data)))
    assert all(0 < member.offset <= member.offset + member.size <= len(data) for member in members)
