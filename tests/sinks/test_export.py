"""Exports: what they hold is what the index holds, and what they refuse."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from annoy import AnnoyIndex
from long_runs import some_long
from outputs import publish_features
from vector_outputs import publish_vectors

import imgindex
from imgindex.cli import main
from imgindex.errors import DamagedError, MachineError, UsageError
from imgindex.generations import layout
from imgindex.generations.prune import prune
from imgindex.runtime.progress import Progress
from imgindex.sinks import source as sources
from imgindex.sinks.formats import FORMATS, writer_of
from imgindex.sinks.options import ExportOptions
from imgindex.uris import name_of, uri_of

OLD, NEW = "20260101T000000Z-00000001", "20260101T000000Z-00000002"
URIS = [f"{'ab'[n % 2]}/{n:02}.jpg" for n in range(11)] + ["top.jpg"]
VECTORS = np.random.default_rng(1).normal(size=(12, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An output with an old generation of five images and a live one of twelve, in three shards."""
    folder = str(tmp_path_factory.mktemp("output"))
    publish_vectors(folder, OLD, URIS[:5], VECTORS[:5])
    publish_vectors(folder, NEW, URIS, VECTORS, shards=3)
    return folder


def read(folder: Path) -> tuple[pa.Table, npt.NDArray[np.float32]]:
    """All rows of an export, as its readers take them: files paired in the order of their names."""
    arrays = sorted((folder / "img_emb").iterdir())
    tables = sorted((folder / "metadata").iterdir())
    rows = [(pq.read_table(table), np.load(array)) for table, array in zip(tables, arrays, strict=True)]
    assert all(len(table) == len(array) for table, array in rows)
    return pa.concat_tables([table for table, _ in rows]), np.concatenate([array for _, array in rows])


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


class TestNpy:
    def test_row_by_row_it_holds_what_the_index_holds(self, output: str, tmp_path: Path) -> None:
        exported = imgindex.export(output, "npy", tmp_path / "out")
        assert (exported.images, exported.dims, exported.generation) == (12, 6, NEW)
        images, vectors = read(tmp_path / "out")
        assert vectors.dtype == np.float32
        numbers = [URIS.index(uri) for uri in images["uri"].to_pylist()]
        assert sorted(numbers) == list(range(12))
        assert np.array_equal(vectors, VECTORS[numbers])
        assert images.select(["label", "sha256", "size", "width", "height"]).to_pylist() == [
            {
                "label": "ab"[n % 2] if n < 11 else None,
                "sha256": f"{n:064x}",
                "size": n + 1,
                "width": 5,
                "height": 6,
            }
            for n in numbers
        ]

    def test_a_pair_of_files_is_a_shard_in_the_order_of_its_items(self, output: str, tmp_path: Path) -> None:
        imgindex.export(output, "npy", tmp_path / "out")
        generation = Path(output, "generations", NEW)
        assert sorted(digests(tmp_path / "out")) == [
            "export.json",
            *(f"img_emb/img_emb_000{n}.npy" for n in range(3)),
            *(f"metadata/metadata_000{n}.parquet" for n in range(3)),
        ]
        for shard in range(3):
            annoy = AnnoyIndex(6, "angular")
            annoy.load(str(generation / f"index/index-0000{shard}-of-00003.ann"))
            vectors = np.load(tmp_path / f"out/img_emb/img_emb_000{shard}.npy")
            assert vectors.tolist() == [annoy.get_item_vector(item) for item in range(annoy.get_n_items())]

    def test_normalized_vectors_have_length_one_and_keep_their_direction(self, tmp_path: Path) -> None:
        vectors = np.concatenate([VECTORS * 1e-3, np.zeros((1, 6), np.float32)])
        publish_vectors(str(tmp_path / "index"), NEW, [*URIS, "zero.jpg"], vectors)
        imgindex.export(tmp_path / "index", "npy", tmp_path / "out", normalize=True)
        _, scaled = read(tmp_path / "out")
        lengths = np.linalg.norm(scaled.astype(np.float64), axis=1)
        assert lengths[:-1] == pytest.approx(1, abs=1e-6)
        assert lengths[-1] == 0
        _, kept = read(Path(imgindex.export(tmp_path / "index", "npy", tmp_path / "kept").folder))
        assert np.allclose(scaled * np.linalg.norm(kept, axis=1, keepdims=True), kept, rtol=1e-5, atol=0)

    def test_the_same_generation_gives_the_same_bytes(self, output: str, tmp_path: Path) -> None:
        for name in ("one", "two", "two"):
            imgindex.export(output, "npy", tmp_path / name)
        assert digests(tmp_path / "one") == digests(tmp_path / "two")

    def test_names_that_are_not_utf_8_have_the_uris_of_the_index(self, tmp_path: Path) -> None:
        names = [b"caf\xe9.jpg", b"\xff/\xfe.jpg", "猫.jpg".encode()]
        uris = [uri_of(os.fsdecode(name)) for name in names]
        publish_vectors(str(tmp_path / "index"), NEW, uris, VECTORS[:3])
        imgindex.export(tmp_path / "index", "npy", tmp_path / "out")
        images, _ = read(tmp_path / "out")
        assert {os.fsencode(name_of(uri)) for uri in images["uri"].to_pylist()} == set(names)

    @pytest.mark.parametrize("rows", [1, 3, 4, 5])
    def test_the_bytes_of_vectors_do_not_depend_on_how_many_are_read_at_once(
        self, rows: int, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole, whole_vectors = read(Path(imgindex.export(output, "npy", tmp_path / "whole").folder))
        monkeypatch.setattr(sources, "BATCH_ROWS", rows)
        with sources.opened(output, None, normalize=False, progress=Progress()) as source:
            assert {len(batch.vectors) for batch in source.batches()} <= set(range(1, rows + 1))
        images, vectors = read(Path(imgindex.export(output, "npy", tmp_path / "out").folder))
        assert images.equals(whole)
        assert np.array_equal(vectors, whole_vectors)


def test_the_description_names_the_recipe_and_every_file(output: str, tmp_path: Path) -> None:
    imgindex.export(output, "npy", tmp_path / "out", normalize=True)
    description = json.loads((tmp_path / "out" / "export.json").read_text())
    assert {key: description[key] for key in ("format", "generation", "metric", "dims", "images")} == {
        "format": "npy", "generation": NEW, "metric": "angular", "dims": 6, "images": 12,
    }  # fmt: skip
    assert description["spec"] == "spec"
    assert description["normalized"] is True
    named = {file["path"]: file["sha256"] for file in description["files"]}
    found = digests(tmp_path / "out")
    assert named == {path: found[path] for path in found if path != "export.json"}


# UMAP takes half a minute to import.
@pytest.mark.parametrize("name", some_long(FORMATS, *FORMATS.keys() - {"atlas"}))
def test_every_format_can_be_written_and_is_documented(name: str) -> None:
    if FORMATS[name].extra:
        with contextlib.suppress(MachineError):  # which names the extra
            assert callable(writer_of(name, ExportOptions()))
    else:
        assert callable(writer_of(name, ExportOptions()))
    assert f"`{name}`" in (Path(__file__).parents[2] / "docs" / "export.md").read_text()


class TestGenerations:
    def test_an_older_one_by_its_name(self, output: str, tmp_path: Path) -> None:
        arguments = ["--format", "npy", "--generation", OLD]
        assert main(["export", output, str(tmp_path / "out"), *arguments]) == 0
        images, _ = read(tmp_path / "out")
        assert images["uri"].to_pylist() == sorted(URIS[:5])

    def test_one_that_is_pruned_meanwhile_is_read_to_its_end(self, place: str) -> None:
        publish_vectors(place, OLD, URIS, VECTORS, shards=2)
        with sources.opened(place, None, normalize=False, progress=Progress()) as source:
            publish_vectors(place, NEW, URIS[:1], VECTORS[:1])
            assert prune(place, keep=1, grace_seconds=-1).generations == (OLD,)
            batches = list(source.batches())
        assert sorted(uri for batch in batches for uri in batch.images["uri"].to_pylist()) == sorted(URIS)
        assert sum(len(batch.vectors) for batch in batches) == 12

    @pytest.mark.parametrize("step", [(layout, "read_manifest"), (pa, "memory_map")])
    def test_one_that_is_pruned_while_it_is_opened_gives_way_to_the_live_one(
        self, step: tuple[Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        output = str(tmp_path / "index")
        publish_vectors(output, OLD, URIS, VECTORS)
        take = getattr(*step)

        def publish_first(*arguments: object) -> object:
            monkeypatch.undo()
            publish_vectors(output, NEW, URIS[:2], VECTORS[:2])
            prune(output, keep=1, grace_seconds=-1)
            return take(*arguments)

        monkeypatch.setattr(*step, publish_first)
        assert imgindex.export(output, "npy", tmp_path / "out").generation == NEW

    def test_a_damaged_one_is_refused_and_leaves_nothing(self, tmp_path: Path) -> None:
        publish_vectors(str(tmp_path / "index"), NEW, URIS, VECTORS)
        (metadata,) = (tmp_path / "index").rglob("metadata-*.parquet")
        metadata.write_bytes(metadata.read_bytes()[::-1])
        with pytest.raises(DamagedError, match="has other bytes than were written"):
            imgindex.export(tmp_path / "index", "npy", tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["index"]

    def test_on_an_object_store(self, memory: object, tmp_path: Path) -> None:
        publish_vectors("mem://bucket/index", NEW, URIS, VECTORS, shards=2)
        assert imgindex.export("mem://bucket/index", "npy", tmp_path / "out").images == 12


class TestMessages:
    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["OUT", "s3://bucket/x"], 2, "s3://bucket/x is on an object store; export to a local folder and "
             "copy that"),
            (["OUT", "OUT/export"], 2, "OUT/export lies in the index; name a folder outside of it"),
            (["OUT", "/"], 2, "/ is a mount point, which no rename replaces; name a folder in it"),
            (["OUT", "new", "--generation", "7"], 2, "'7' is no generation's name; `imgindex inspect OUT` "
             "lists them"),
            (["OUT", "new", "--generation", "20260101T000000Z-0badc0de"], 2, "OUT has no generation "
             "20260101T000000Z-0badc0de, or no longer; `imgindex inspect OUT` lists those that it has"),
            (["none", "new"], 3, "CWD/none holds no index; `imgindex build` writes one"),
            (["OUT", "OUT/CURRENT"], 2, "OUT/CURRENT is a file; name a folder"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_done(
        self,
        arguments: list[str],
        code: int,
        message: str,
        output: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)

        def filled(text: str) -> str:
            return text.replace("OUT", output).replace("CWD", str(tmp_path))

        assert main(["export", *map(filled, arguments), "--format", "npy"]) == code
        assert capsys.readouterr().err == f"imgindex: {filled(message)}\n"
        assert list(tmp_path.iterdir()) == []

    def test_an_unknown_format(self, output: str, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match="2"):
            main(["export", output, str(tmp_path / "out"), "--format", "hdf5"])
        with pytest.raises(UsageError, match="'hdf5' is no format of an export; expected one of npy"):
            imgindex.export(output, "hdf5", tmp_path / "out")

    def test_what_was_done(self, output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["export", output, "--format", "npy", str(tmp_path / "out")]) == 0
        assert capsys.readouterr().out == (
            f"{tmp_path}/out holds 12 vectors of 6 dimensions, of generation {NEW}\n"
        )


@pytest.mark.long
@pytest.mark.parametrize("command", [["export", "--format", "npy", "vectors"], ["evaluate"]])
@pytest.mark.parametrize(("kind", "code"), [("-S", 0), ("-H -S", 3)])
def test_an_index_of_more_shards_than_files_may_be_open(
    command: list[str], kind: str, code: int, tmp_path: Path
) -> None:
    features = np.random.default_rng(0).random((120, 8)).astype(np.float32)
    publish_features(tmp_path / "output", features, [f"{n:03}.jpg" for n in range(120)], shards=60)
    done = subprocess.run(
        ["bash", "-c", f'ulimit {kind} -n 80; exec "$@"', "bash", sys.executable, "-m", "imgindex",
         command[0], str(tmp_path / "output"), *command[1:]],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    said = "files must be open at once, and 80 may be: raise the limit (ulimit -n, or the container's)"
    assert (said in done.stderr) == (code == 3)
