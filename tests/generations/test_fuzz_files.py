"""Files of an output that hold anything: an error that names the file, and no crash, nor much memory.

Some are damaged as they lie there. Others have every digest right, as of somebody who means harm: what they
hold is then all that tells them from what a build has written.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from packed import npz
from reader import READERS
from test_upkeep import fail, generate, keep

from imgindex.io.digest_json import _digest_of

Ends = dict[str, list[str]]


class Reader:
    """`reader.py`, started anew where it has died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def read(self, output: Path, names: Sequence[str] = tuple(READERS)) -> Ends:
        """How each of these `READERS` ended; fails where one died, or raised what is no error of ours."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).parents[1] / "reader.py")],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )  # fmt: skip
        self._process.stdin.write(json.dumps([str(output), list(names)]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            process, self._process = self._process, None
            pytest.fail(f"reading ended the process: exit code {process.wait()}")
        ends: Ends = json.loads(line)
        assert list(ends) == list(names)
        for name, end in ends.items():
            assert end[:1] != [""], f"{name}: {end[1]}"
        return ends

    def close(self) -> None:
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait()


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.close()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of two generations, whose store holds features and failures."""
    output = tmp_path_factory.mktemp("original")
    keep(str(output), "spec", "abcdefg")
    fail(str(output), "spec", "xyz")
    for number in (1, 2):
        generate(str(output), number, "abcdefg", failed="xyz")
    return output


def copied(original: Path) -> Path:
    copy = original.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    return Path(shutil.copytree(original, copy))


def live(output: Path) -> Path:
    return output / "generations" / (output / "CURRENT").read_text().strip()


def reseal(output: Path, change: Any = None) -> None:
    """Makes the live manifest say what its files hold, and `change` it."""
    path = live(output) / "manifest.json"
    manifest = json.loads(path.read_bytes())
    for file in manifest["files"]:
        data = (live(output) / file["path"]).read_bytes()
        file |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if change is not None:
        manifest = change(manifest)
    if isinstance(manifest, dict):
        manifest = {**manifest, "digest": _digest_of(manifest)}
    path.write_text(json.dumps(manifest))


def readers_of(path: Path) -> list[str]:
    """Those of `READERS` that promise something where `path` may hold anything."""
    # What opens an index quickly trusts its Annoy files.
    return [name for name in READERS if path.suffix != ".ann" or name != "quick"]


def rename_chunk(path: Path) -> Path:
    """Names a file of the store by the digest of what it holds now."""
    kind = path.name.partition("-")[0]
    return path.rename(path.with_name(f"{kind}-{hashlib.sha256(path.read_bytes()).hexdigest()[:32]}.parquet"))


def test_the_original_is_read(original: Path, reader: Reader) -> None:
    assert reader.read(copied(original)) == {name: [] for name in READERS}
    output = copied(original)
    reseal(output)
    rename_chunk(next(output.glob("store/spec/chunk-*")))
    assert reader.read(output) == {name: [] for name in READERS}


@st.composite
def mutants(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` with bits turned, or a part cut out, doubled, moved, or written over by what lengths may be."""
    start = draw(st.integers(0, len(data) - 1))
    end = draw(st.integers(start, min(len(data), start + 64)))
    part = data[start:end]
    to = draw(st.integers(0, len(data)))
    extremes = [
        b"\xff" * 4,
        b"\xff" * 8,
        b"\x7f" + b"\xff" * 7,
        b"\0" * 8,
        b"\xff\xff\xff\x7f",
        b"\x80" * 5 + b"\1",
    ]
    return draw(
        st.sampled_from([
            data[:start],
            data[:start] + data[end:],
            data[:to] + part + data[to:],
            *(data[:start] + value + data[start + len(value) :] for value in extremes),
            *(data[:start] + bytes([data[start] ^ bit]) + data[start + 1 :] for bit in (1, 4, 32, 128)),
            data[:start] + draw(st.binary(min_size=1, max_size=9)) + data[end:],
        ])
    )  # fmt: skip


@pytest.mark.long
@given(st.data())
@settings(max_examples=60)
def test_any_damage_is_named_or_harmless(original: Path, reader: Reader, data: Any) -> None:
    output = copied(original)
    files = [*live(output).rglob("*"), *output.glob("store/spec/*"), output / "CURRENT"]
    path = data.draw(st.sampled_from(sorted(file for file in files if file.is_file())))
    before = path.read_bytes()
    after = data.draw(mutants(before))
    path.write_bytes(after)
    ends = reader.read(output, readers_of(path))
    if after != before and path.name not in ("CURRENT", "manifest.json"):
        assert path.name in "".join(ends["verify"])
        assert {"store", "failures"} & set(path.parts) or ends["search"]
    elif ends["verify"]:  # else only the layout is another
        assert str(output) in ends["verify"][-1]


HOSTILE = st.sampled_from([
    None, True, -1, 0, 1, 2**31, 2**63, 10**400, 0.5, -0.0, float("nan"), float("inf"), 1e308, "", "x",
    "a\nb",
    "../../etc/passwd", "/etc/passwd", "index/..", "index/../../x", "pca/basis.npz", "index//x", "index/x\0",
    "\ud800", [], [1], {}, {"path": "x"}, [[]], "é" * 1000,
])  # fmt: skip


@st.composite
def edits(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value of which one part is another, is gone, or is there twice."""
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(value)))
        others = {name: inner for name, inner in value.items() if name != key}
        return others if not draw(st.integers(0, 6)) else {**others, key: draw(edits(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 9)):
        at = draw(st.integers(0, len(value) - 1))
        if not draw(st.integers(0, 4)):
            return [*value, value[at]]
        return [*value[:at], draw(edits(value[at])), *value[at + 1 :]]
    return draw(HOSTILE)


@given(st.data())
@settings(max_examples=40, phases=[Phase.generate])
def test_any_manifest_with_a_right_digest(original: Path, reader: Reader, data: Any) -> None:
    output = copied(original)
    reseal(output, lambda manifest: data.draw(edits(manifest)))
    for end in reader.read(output).values():
        assert not end or str(output) in end[-1]


@pytest.mark.parametrize("path", ["../../../out/basis.npz", "pca/../../../../out/basis.npz", "{}/basis.npz"])
def test_no_path_leads_out_of_a_generation(path: str, original: Path, reader: Reader) -> None:
    output = copied(original)
    out = output.with_name("out")
    out.mkdir(exist_ok=True)
    shutil.copy(live(output) / "pca/basis.npz", out)
    text = (live(output) / "manifest.json").read_text()
    moved = json.loads(text.replace("pca/basis.npz", path.format(out)))
    reseal(output, lambda _: moved)
    ends = reader.read(output)
    for name in ("verify", "search", "quick", "inspect"):
        assert ends[name][0] == "DamagedError"
        assert "manifest.json" in ends[name][1]


@pytest.mark.long
@given(st.data())
@settings(max_examples=40, phases=[Phase.generate])
def test_any_file_of_a_generation_with_a_right_digest(original: Path, reader: Reader, data: Any) -> None:
    output = copied(original)
    files = sorted(file for file in live(output).glob("*/*") if file.is_file())
    path = data.draw(st.sampled_from(files))
    path.write_bytes(data.draw(mutants(path.read_bytes())))
    reseal(output)
    for name, end in reader.read(output, readers_of(path)).items():
        assert not end or path.name in end[-1], (name, end)


@pytest.mark.long
@given(st.data())
@settings(max_examples=40, phases=[Phase.generate])
def test_any_file_of_the_store_with_a_right_digest(original: Path, reader: Reader, data: Any) -> None:
    output = copied(original)
    path = data.draw(st.sampled_from(sorted(output.glob("store/spec/*"))))
    path.write_bytes(data.draw(mutants(path.read_bytes())))
    path = rename_chunk(path)
    ends = reader.read(output)
    for name in ("verify", "prune"):
        assert not ends[name] or path.name in ends[name][-1], ends[name]
    assert ends["search"] == ends["inspect"] == []


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, Any]:
        return Path.touch, (self._path,)


def basis_of(output: Path, change: dict[str, Any]) -> bytes:
    with np.load(live(output) / "pca/basis.npz") as arrays:
        return npz({name: arrays[name] for name in arrays} | change)


def header(shape: str, dtype: str = "<f4") -> bytes:
    """A NumPy file whose header promises `shape`, and no values."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "change",
    [
        {"mean": np.full(16, np.nan, np.float32)},
        {"components": np.full((4, 16), np.inf, np.float32)},
        {"explained_variance": np.array([1, 2, 3, np.nan], np.float32)},
        {"whiten": np.array(True), "explained_variance": np.zeros(4, np.float32)},
        {"whiten": np.array(True), "explained_variance": -np.ones(4, np.float32)},
        {"whiten": np.array(1.5)},
        {"whiten": np.array("no")},
        {"mean": np.zeros(16, ">f4")},
        {"components": np.zeros((3, 16), np.float32), "explained_variance": np.ones(3, np.float32)},
    ],
)
def test_bases_that_no_build_writes(change: dict[str, Any], original: Path, reader: Reader) -> None:
    output = copied(original)
    (live(output) / "pca/basis.npz").write_bytes(basis_of(output, change))
    reseal(output)
    ends = reader.read(output)
    assert ends["search"][0] == "DamagedError"
    assert "basis.npz" in ends["search"][1]


def test_a_pickle_in_a_basis_is_not_executed(original: Path, reader: Reader, tmp_path: Path) -> None:
    output = copied(original)
    trap = np.array([Trap(tmp_path / "executed")], dtype=object)
    (live(output) / "pca/basis.npz").write_bytes(basis_of(output, {"mean": trap}))
    reseal(output)
    ends = reader.read(output)
    assert ends["search"][0] == ends["quick"][0] == "DamagedError"
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "shape", ["(10**9,)", "(1000000000, 1000000000)", "(-1, -16)", "(0, 4611686018427387904)"]
)
def test_arrays_of_huge_or_odd_shapes(shape: str, original: Path, reader: Reader) -> None:
    import zipfile

    output = copied(original)
    path = live(output) / "pca/basis.npz"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, body in (members | {"components.npy": header(shape)}).items():
            archive.writestr(name, body)
    reseal(output)
    assert reader.read(output)["search"][0] == "DamagedError"


def edited(path: Path, **columns: Any) -> None:
    """Writes a Parquet file again with other `columns`; None takes one away."""
    table = pq.ParquetFile(io.BytesIO(path.read_bytes())).read()
    for name, values in columns.items():
        at = table.column_names.index(name)
        table = table.remove_column(at) if values is None else table.set_column(at, name, values)
    pq.write_table(table, path)


N = 7


@pytest.mark.parametrize(
    "columns",
    [
        {"item": pa.array(range(N, 0, -1), pa.int32())},
        {"item": pa.array(range(N), pa.int64())},
        {"uri": pa.array(range(N))},
        {"uri": pa.array([None] * N, pa.string())},
        {"uri": None},
        {"sha256": pa.array([["a"]] * N)},
        {"label": pa.array([b"\xff"] * N)},
    ],
)
def test_metadata_that_no_build_writes(columns: dict[str, Any], original: Path, reader: Reader) -> None:
    output = copied(original)
    (path,) = live(output).glob("metadata/*")
    edited(path, **columns)
    reseal(output)
    ends = reader.read(output)
    assert ends["search"][0] == ends["quick"][0] == "DamagedError"
    assert path.name in ends["search"][1]


@pytest.mark.parametrize("uri", ["../../etc/passwd", "/etc/passwd", "a/../../x", "\0", "x" * 100_000])
def test_uris_that_lead_elsewhere_are_shown_and_not_followed(
    uri: str, original: Path, reader: Reader
) -> None:
    output = copied(original)
    (path,) = live(output).glob("metadata/*")
    edited(path, uri=pa.array([uri] * N))
    reseal(output)
    assert reader.read(output)["search"] == []


@pytest.mark.parametrize("value", [np.nan, np.inf, 1.5])
def test_features_that_no_build_writes(value: float, original: Path, reader: Reader) -> None:
    output = copied(original)
    (path,) = output.glob("store/spec/chunk-*")
    features = pa.FixedSizeListArray.from_arrays(pa.array(np.full(N * 16, value, np.float16)), 16)
    edited(path, feature=features)
    path = rename_chunk(path)
    ends = reader.read(output)
    assert ends["verify"][0] == "problems"
    assert path.name in ends["verify"][1]


def test_versions_that_are_no_times(original: Path, reader: Reader) -> None:
    output = copied(original)
    (path,) = output.glob("store/spec/chunk-*")
    edited(path, etag_or_mtime=pa.array(["etag"] * N), uri=pa.array(["a"] * N), sha256=pa.array(["a1"] * N))
    rename_chunk(path)
    assert reader.read(output)["prune"] == []


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b'{"uri": "x"}',
        b"\xff",
        b'{"uri": [], "sha256": 1}',
        b"[" * 100_000,
        b'{"uri": "\\ud800", "sha256": null}',
    ],
)
def test_a_list_of_failures_that_no_build_writes(line: bytes, original: Path, reader: Reader) -> None:
    output = copied(original)
    path = min(live(output).glob("failures/*"))
    path.write_bytes(line + b"\n")
    reseal(output)
    ends = reader.read(output)
    assert ends["prune"][0] == "DamagedError"
    assert path.name in ends["prune"][1]
