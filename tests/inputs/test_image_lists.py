"""Lists as inputs: the same files have the same uris as in a directory's listing."""

import csv
import os
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packed import tar_of

from imgindex.errors import InputError
from imgindex.inputs.image_lists import read_list
from imgindex.inputs.listing import list_images
from imgindex.inputs.selection import Selection
from imgindex.inputs.source import input_root
from imgindex.io import filesystem
from imgindex.records import Failure, ImageFile

SELECTION = Selection((".jpg",))


def listed(source: str) -> dict[str, ImageFile | Failure]:
    """What `source` holds, by uri; refuses a uri that comes twice."""
    found = list(list_images(source, SELECTION))
    assert len({item.uri for item in found}) == len(found)
    return {item.uri: item for item in found}


def write_list(path: str, names: list[str], column: str = "path") -> None:
    suffix = Path(path).suffix
    if suffix == ".txt":
        data = "".join(f"{name}\n" for name in names).encode("utf-8", "surrogateescape")
    elif suffix == ".csv":
        data = f"number,{column}\n".encode() + "".join(f'1,"{name}"\n' for name in names).encode()
    else:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"number": [1] * len(names), column: names}), sink)
        data = sink.getvalue().to_pybytes()
    filesystem.write_bytes(path, data)


@pytest.mark.parametrize("kind", [".txt", ".csv", ".parquet"])
@pytest.mark.parametrize("column", ["path", "uri"])
def test_a_list_of_a_directorys_files_is_that_directory(kind: str, column: str, place: str) -> None:
    names = ["a.jpg", "x/b c.jpg", "x/ä,猫.jpg", "x.jpg"]
    for name in names:
        filesystem.write_bytes(filesystem.join(place, name), name.encode())
    filesystem.write_bytes(filesystem.join(place, "shards/x.tar"), tar_of({"a.jpg": b"a", "b/c.jpg": b"c"}))
    directory = listed(place)
    source = filesystem.join(place, f"list{kind}")
    given = [
        "./a.jpg",
        filesystem.join(place, "x/b c.jpg"),
        "x/../x/ä,猫.jpg",
        "x.jpg",
        "shards/x.tar",
        "a.jpg",
    ]
    write_list(source, given, column)
    assert input_root(source) == place
    assert listed(source) == directory
    # What a generation's metadata says of them is a list of them, too.
    write_list(source, list(directory), column)
    assert listed(source) == directory


def test_what_lies_elsewhere_has_its_whole_path(tmp_path: Path, memory: Any) -> None:
    (tmp_path / "list").mkdir()
    (tmp_path / "a.jpg").write_bytes(b"a")
    memory["mem://bucket/b.jpg"] = b"b", 1.0
    write_list(f"{tmp_path}/list/list.txt", ["../a.jpg", "mem://bucket/b.jpg", f"{tmp_path}/list/../a.jpg"])
    assert {uri: item.path for uri, item in listed(f"{tmp_path}/list/list.txt").items()} == {
        f"{tmp_path}/a.jpg": f"{tmp_path}/a.jpg",
        "mem://bucket/b.jpg": "mem://bucket/b.jpg",
    }


def test_what_is_missing_is_a_failure(place: str) -> None:
    filesystem.write_bytes(filesystem.join(place, "a.jpg"), b"a")
    filesystem.write_bytes(filesystem.join(place, "x.tar"), tar_of({"b.jpg": b"b"}))
    write_list(
        filesystem.join(place, "list.txt"),
        ["a.jpg", "gone.jpg", "x.tar/b.jpg", "x.tar/gone.jpg", "gone.tar/c.jpg", "", "gone.jpg"],
    )
    found: dict[str, Any] = {**listed(filesystem.join(place, "list.txt"))}
    failed = {uri for uri, item in found.items() if isinstance(item, Failure)}
    assert {(found[uri].stage, found[uri].reason) for uri in failed} == {("list", "vanished")}
    assert failed == {"gone.jpg", "x.tar/gone.jpg", "gone.tar/c.jpg"}
    assert found.keys() - failed == {"a.jpg", "x.tar/b.jpg"}


def test_a_listed_file_may_have_any_name(tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(b"data")
    write_list(f"{tmp_path}/list.txt", ["picture"])
    assert list(listed(f"{tmp_path}/list.txt")) == ["picture"]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    try:
        (tmp_path / name).write_bytes(b"data")
    except OSError:
        pytest.skip("this filesystem takes UTF-8 names only")
    write_list(f"{tmp_path}/list.txt", [name])
    assert listed(f"{tmp_path}/list.txt") == listed(str(tmp_path))
    # In tables text is UTF-8, but uris have stand-ins.
    write_list(f"{tmp_path}/list.parquet", ["caf\U0010dce9.jpg"], "uri")
    assert list(listed(f"{tmp_path}/list.parquet")) == ["caf\U0010dce9.jpg"]

    pq.write_table(pa.table({"path": [b"caf\xe9.jpg"]}), tmp_path / "bytes.parquet")
    assert listed(f"{tmp_path}/bytes.parquet") == listed(str(tmp_path))


@pytest.mark.parametrize("suffix", [".txt", ".csv"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16-le", "utf-16-be"])
def test_what_windows_programs_save_as_text(suffix: str, encoding: str, tmp_path: Path) -> None:
    names = ["a.jpg", "x/ä 猫.jpg", "č.jpg"]
    text = "\r\n".join(["path", *names] if suffix == ".csv" else names)
    mark = "\ufeff" if encoding.startswith("utf-16") else ""
    (tmp_path / f"list{suffix}").write_bytes((mark + text).encode(encoding))
    assert list(listed(f"{tmp_path}/list{suffix}")) == names


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-32"])
def test_text_of_other_encodings_is_refused(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("a.jpg\n".encode(encoding))
    with pytest.raises(
        InputError, match="no path holds a NUL; save it as UTF-8, or as UTF-16 with a byte order"
    ):
        listed(f"{tmp_path}/list.txt")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@given(names=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), min_size=1))
def test_a_csv_file_has_the_delimiter_of_its_header(delimiter: str, names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with Path(folder, "list.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, delimiter=delimiter)
            rows.writerow(["label", "path", "note"])
            rows.writerows(["cat", f"x/{name}", ""] for name in names)
        read = [path for _, path in read_list(f"{folder}/list.csv")]
        assert read == [os.path.normpath(f"{folder}/x/{name}") for name in names]


@pytest.mark.parametrize("header", ["path", "path,label", "label,path"])
def test_a_row_with_other_fields_than_the_header_is_refused(header: str, tmp_path: Path) -> None:
    fields = header.count(",") + 1
    rows = ["a.jpg" + ",x" * (fields - 1), "", ",".join("b" * (fields + 1)), "c.jpg"]
    (tmp_path / "list.csv").write_text("\n".join([header, *rows]))
    with pytest.raises(
        InputError, match=f"line 4 has {fields + 1} fields and the header {fields}, separated by ','"
    ):
        listed(f"{tmp_path}/list.csv")


def test_a_field_of_the_header_may_have_several_lines(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text('"path","note\nmore"\na.jpg,x\nb.jpg,y,z\n')
    with pytest.raises(InputError, match="line 4 has 3 fields and the header 2"):
        listed(f"{tmp_path}/list.csv")
    (tmp_path / "list.csv").write_text('"path","note\nmore"\na.jpg,x\n')
    assert list(listed(f"{tmp_path}/list.csv")) == ["a.jpg"]


def test_a_row_may_end_after_the_name(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,label\na.jpg\nb.jpg,cat\n")
    assert list(listed(f"{tmp_path}/list.csv")) == ["a.jpg", "b.jpg"]
    (tmp_path / "list.csv").write_text("label,path\ncat,b.jpg\ncat\n")
    with pytest.raises(InputError, match=r"line 3 has 1 field .*; it lacks the path"):
        listed(f"{tmp_path}/list.csv")


@pytest.mark.parametrize("name", ['"a.jpg"', "'a.jpg'", "a.jpg ", " a.jpg", "a.jpg\t"])
def test_a_name_that_is_not_quite_a_files_is_missing(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    (tmp_path / "list.txt").write_text(f"{name}\na.jpg\n")
    missing = listed(f"{tmp_path}/list.txt")[name]
    assert isinstance(missing, Failure)
    assert missing.reason == "vanished"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("list.csv", b"name,size\na.jpg,1\n", "expected a column uri or path, it has name, size"),
        ("list.csv", b"", "expected a column uri or path, it has none"),
        ("list.csv", b'path\n"' + b"x" * 200_000 + b'"\n', "field larger"),
        ("list.parquet", b"no Parquet", "is no list of images"),
        ("list.txt", b"x" * 100_000, "a line is longer than"),
        ("list.csv", b"path\n" + b"x,y" * 1_000_000, "a line is longer than"),
    ],
)
def test_a_list_that_cannot_be_read(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        list(list_images(f"{tmp_path}/{name}", SELECTION))


def test_a_column_of_numbers_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"uri": [1, 2]}), tmp_path / "list.parquet")
    with pytest.raises(InputError, match="column uri holds int"):
        list(list_images(f"{tmp_path}/list.parquet", SELECTION))


def test_a_missing_list(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"list\.txt: cannot be read: No such file"):
        list(list_images(f"{tmp_path}/list.txt", SELECTION))


def test_a_directory_may_be_named_like_a_list(tmp_path: Path) -> None:
    (tmp_path / "photos.csv").mkdir()
    (tmp_path / "photos.csv/a.jpg").write_bytes(b"a")
    assert list(listed(f"{tmp_path}/photos.csv")) == ["a.jpg"]
