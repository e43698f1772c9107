"""The second build into an output: it costs what changed, and ends as a build from scratch would."""

import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from relocated import relocate

import imgindex
from imgindex.cli import main
from imgindex.errors import InputError, OutputError, PublishRefusedError, UsageError
from imgindex.generations.layout import Output, current_name, generation_names
from imgindex.generations.prune import prune
from imgindex.generations.verify import verify
from imgindex.io import content_addressed, filesystem
from imgindex.io.output_lock import writer_lock
from imgindex.job.launch import refresh

BACKBONE = imgindex.BackboneConfig(name="MobileNetV2", weights="none", image_size=32)
CONFIG = imgindex.Config(
    backbone=BACKBONE,
    engine=imgindex.EngineConfig(precision="float32"),
    pca=imgindex.PcaConfig(dims=8),
    # Features of random weights hardly differ, so that neighbors are as good as each other.
    publish=imgindex.PublishConfig(min_recall=0.0),
)
IMAGES = 40


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, image_bytes: Callable[..., bytes]) -> Path:
    """A folder with ``photos`` and an ``index`` of them, which tests copy."""
    folder = tmp_path_factory.mktemp("base")
    for number in range(IMAGES):
        path = folder / "photos" / f"{number % 4}" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Of many sizes, so that few have to be hashed before they are embedded.
        path.write_bytes(image_bytes(number, (30 + number, 25)))
    imgindex.build(config_of(folder))
    return folder


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    relocate(base, tmp_path / "copy")
    return tmp_path / "copy"


def config_of(folder: Path, **changes: Any) -> imgindex.Config:
    paths = {"input": str(folder / "photos"), "output": str(folder / "index")}
    return replace(CONFIG, **{**paths, **changes})


def content(output: Path | str) -> dict[str, bytes]:
    """The live generation's index, metadata and basis, by path."""
    directory = Path(output) / "generations" / str(current_name(Output(str(output))))
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for part in ("index", "metadata", "pca")
        for path in (directory / part).iterdir()
    }


def counts(manifest: dict[str, Any], *names: str) -> tuple[int, ...]:
    return tuple(manifest["ledger"][name] for name in names)


CHANGES = ("added", "changed", "removed", "unchanged")
SOURCES = ("embedded", "copied", "reused")


def test_nothing_changed_publishes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = current_name(Output(str(folder / "index")))
    files = sorted((folder / "index").rglob("*"))
    found = refresh(config_of(folder))
    assert not found.published
    assert found.manifest["generation"] == before
    assert counts({"ledger": found.ledger}, *CHANGES, *SOURCES) == (0, 0, 0, IMAGES, 0, 0, IMAGES)
    assert sorted((folder / "index").rglob("*")) == files
    settings = folder / "config.json"
    settings.write_text(
        json.dumps({
            "backbone": {"name": "MobileNetV2", "weights": "none", "image_size": 32},
            "engine": {"precision": "float32"}, "pca": {"dims": 8}, "publish": {"min_recall": 0},
        })
    )  # fmt: skip
    arguments = ["--input", str(folder / "photos"), "--output", str(folder / "index")]
    assert main(["build", *arguments, "--config", str(settings)]) == 0
    assert f"nothing has changed: {IMAGES} images listed" in capsys.readouterr().out


def change(photos: Path, image_bytes: Callable[..., bytes]) -> None:
    """Adds 2, changes 1, removes 1, renames 1, touches 1, copies 1."""
    (photos / "0" / "new-1.png").write_bytes(image_bytes(1001, (91, 31)))
    (photos / "0" / "new-2.png").write_bytes(image_bytes(1002, (92, 31)))
    (photos / "1" / "01.png").write_bytes(image_bytes(1003, (93, 31)))
    (photos / "2" / "02.png").unlink()
    (photos / "3" / "03.png").rename(photos / "0" / "renamed.png")
    os.utime(photos / "0" / "04.png", (1e9, 1e9))
    shutil.copyfile(photos / "1" / "05.png", photos / "0" / "copy.png")


def test_a_refresh_embeds_only_new_content(folder: Path, image_bytes: Callable[..., bytes]) -> None:
    change(folder / "photos", image_bytes)
    manifest = imgindex.build(config_of(folder))
    assert counts(manifest, "listed", "indexed", "failed") == (42, 42, 0)
    # Under a name that it had not before an image is added, even if its bytes were there.
    assert counts(manifest, *CHANGES) == (4, 1, 2, 37)
    assert counts(manifest, *SOURCES) == (3, 3, 36)
    uris = [row["uri"] for row in rows_of(folder / "index")]
    root = folder / "photos"
    assert uris == sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    # And once more: all is in the store now.
    assert not refresh(config_of(folder)).published


def rows_of(output: Path) -> list[dict[str, Any]]:
    return [row for table in imgindex.Index.open(output)._opened._metadata for row in table.to_pylist()]


def test_a_refresh_ends_as_a_build_from_scratch_on_the_same_basis(
    folder: Path, tmp_path: Path, image_bytes: Callable[..., bytes]
) -> None:
    shutil.copytree(folder, tmp_path / "scratch")
    change(folder / "photos", image_bytes)
    refreshed = imgindex.build(config_of(folder))
    assert not refreshed["pca"]["refit"]
    # All is embedded again, from the same files; of the generation before only the basis counts.
    shutil.rmtree(tmp_path / "scratch" / "index" / "store")
    scratch = imgindex.build(config_of(folder, output=str(tmp_path / "scratch" / "index")))
    # 41 contents in 42 files.
    assert counts(scratch, *SOURCES) == (41, 1, 0)
    assert content(folder / "index") == content(tmp_path / "scratch" / "index")


@pytest.mark.long
def test_only_the_recipe_of_the_index_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(folder, pca=imgindex.PcaConfig(dims=5), index=imgindex.IndexConfig(trees=3))
    manifest = imgindex.build(config)
    assert counts(manifest, *SOURCES) == (0, 0, IMAGES)
    assert (manifest["dims"], manifest["pca"]["refit"]) == (5, True)
    fresh = imgindex.build(replace(config, output=str(folder / "fresh")))
    assert fresh["generation"] != manifest["generation"]
    assert content(folder / "index") == content(folder / "fresh")


@pytest.mark.long
def test_another_spec_embeds_everything_and_the_way_back_is_free(folder: Path) -> None:
    before = content(folder / "index")
    wider = imgindex.build(config_of(folder, backbone=replace(BACKBONE, image_size=40)))
    assert counts(wider, *SOURCES) == (IMAGES, 0, 0)
    back = imgindex.build(config_of(folder))
    assert counts(back, *SOURCES) == (0, 0, IMAGES)
    assert content(folder / "index") == before


@pytest.mark.long
def test_the_basis_is_kept_unless_it_must_not_be(folder: Path, image_bytes: Callable[..., bytes]) -> None:
    first = imgindex.Index.open(folder / "index").manifest
    basis = content(folder / "index")["pca/basis.npz"]
    # Enough of another kind to be noticed: smooth, where the others are noise.
    from PIL import Image

    for number in range(40):
        ramp = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3)
        pixels = np.roll(ramp, 50 * number).astype(np.uint8)
        Image.fromarray(pixels).rotate(9 * number).save(folder / "photos" / f"ramp-{number}.png")
    never = imgindex.build(config_of(folder, pca=imgindex.PcaConfig(dims=8, refit="never")))
    assert never["pca"]["refit"] is False
    assert (never["pca"]["fitted_in"], never["pca"]["fitted_images"]) == (first["generation"], IMAGES)
    assert content(folder / "index")["pca/basis.npz"] == basis
    assert main(["rollback", str(folder / "index")]) == 0
    auto = imgindex.build(config_of(folder))
    assert (auto["pca"]["refit"], auto["pca"]["new_images"]) == (True, 40)
    assert auto["pca"]["why"] == "new images are explained worse"
    assert auto["pca"]["unexplained"] > auto["pca"]["tolerated"]
    assert auto["pca"]["fitted_in"] == auto["generation"]
    always = imgindex.build(config_of(folder, pca=imgindex.PcaConfig(dims=8, refit="always")))
    assert always["pca"]["refit"] is True
    assert content(folder / "index")["pca/basis.npz"] != basis


def test_an_input_that_is_not_there_does_not_empty_the_index(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(folder / "index")
    for path in list((folder / "photos").rglob("*.png"))[: IMAGES * 3 // 4]:
        path.unlink()
    with pytest.raises(PublishRefusedError, match=r"check max_shrink: 10 images where .* has 40"):
        imgindex.build(config_of(folder))
    assert content(folder / "index") == before
    forced = imgindex.build(config_of(folder), force=["max_shrink"])
    assert counts(forced, "indexed", "removed") == (10, 30)
    shutil.rmtree(folder / "photos")
    (folder / "photos").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        imgindex.build(config_of(folder), force=["max_shrink"])


def test_an_unknown_check(folder: Path) -> None:
    with pytest.raises(UsageError, match="unknown check 'recall'; expected one of ledger, files"):
        imgindex.build(config_of(folder), force=["recall"])
    arguments = ["--input", str(folder / "photos"), "--output", str(folder / "index"), "--force", "recall"]
    assert main(["build", *arguments]) == 2


def test_an_output_on_hdfs_is_refused_before_any_work(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot replace a file on HDFS.* choose a local directory, s3://"):
        imgindex.build(config_of(folder, output="hdfs://server:8020/index"))


def test_two_builds_at_once(folder: Path) -> None:
    with (
        writer_lock(str(folder / "index")),
        pytest.raises(OutputError, match="is being written by process"),
    ):
        imgindex.build(config_of(folder))
    imgindex.build(config_of(folder))


@pytest.mark.long
def test_a_reader_sees_whole_generations_through_publishes_and_prunes(
    folder: Path, image_bytes: Callable[..., bytes]
) -> None:
    output = folder / "index"
    index = imgindex.Index.open(output)
    vectors = np.array(index._opened._shards[0].vectors)[:3]
    stop, problems, seen = threading.Event(), [], set()
    # What each generation says: a mixture of two would say something else.
    sizes = {index.manifest["generation"]: len(index)}

    def read() -> None:
        while not stop.is_set():
            try:
                index.refresh()
                opened = index._opened
                answers = index.search_vectors(vectors, k=100)
                fresh = imgindex.Index.open(output)
                assert len(fresh) == fresh.manifest["ledger"]["indexed"]
                seen.add((opened.manifest.generation, len(opened)))
                assert all(0 < len(answer.neighbors) <= 100 for answer in answers)
            except Exception as error:  # whatever it is, the test reports it
                problems.append(repr(error))
                return

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(10):
        (folder / "photos" / f"more-{number}.png").write_bytes(image_bytes(2000 + number))
        manifest = imgindex.build(config_of(folder))
        sizes[manifest["generation"]] = IMAGES + number + 1
    prune(str(output), keep=2, grace_seconds=0)
    stop.set()
    reader.join()
    assert problems == []
    assert seen <= set(sizes.items())
    assert len(seen) > 1
    assert len(generation_names(Output(str(output)))) == 2
    assert index.refresh() in (True, False)
    assert len(index) == IMAGES + 10
    assert verify(str(output)).problems == ()


@pytest.mark.long
def test_another_filesystem_without_rename_or_locks(folder: Path, memory: Any) -> None:
    config = config_of(folder, output="mem://bucket/index")
    first = imgindex.build(config)
    assert not refresh(config).published
    (folder / "photos" / "0" / "00.png").unlink()
    second = imgindex.build(config)
    assert counts(second, *CHANGES) == (0, 0, 1, IMAGES - 1)
    index = imgindex.Index.open("mem://bucket/index", first["generation"])
    assert index.refresh()
    assert len(index) == IMAGES - 1
    assert verify("mem://bucket/index").problems == ()
    pruned = prune("mem://bucket/index", keep=1, grace_seconds=0)
    assert pruned.generations == (first["generation"],)
    assert not refresh(config).published
    assert [path for path in memory if "parts" in path] == []
    assert json.loads(memory["mem://bucket/index/.lock"][0])["released"] is True


@pytest.mark.long
def test_every_write_may_fail(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_bytes: Callable[..., bytes]
) -> None:
    change(folder / "photos", image_bytes)
    shutil.copytree(folder, tmp_path / "undisturbed")
    undisturbed = config_of(folder, output=str(tmp_path / "undisturbed" / "index"))
    staged = filesystem.staged
    written: list[str] = []

    def fail_at(number: int) -> Callable[[str], Any]:
        def stage(path: str) -> Any:
            written.append(path)
            if len(written) == number:
                raise OutputError(f"cannot write {path}: No space left on device")
            return staged(path)

        return stage

    monkeypatch.setattr(filesystem, "staged", fail_at(0))
    imgindex.build(undisturbed)
    expected, writes = content(undisturbed.output or ""), list(written)
    kinds = {Path(path).parent.name for path in writes}
    assert kinds >= {"index", "metadata", "pca", "failures", "parts"}
    before = current_name(Output(str(folder / "index")))
    for number in range(1, len(writes) + 1):
        written.clear()
        copy = tmp_path / f"try-{number}"
        shutil.copytree(folder / "index", copy)
        monkeypatch.setattr(filesystem, "staged", fail_at(number))
        with pytest.raises(OutputError, match="No space left on device"):
            imgindex.build(config_of(folder, output=str(copy)))
        assert current_name(Output(str(copy))) == before
        assert verify(str(copy)).problems == ()
        monkeypatch.setattr(filesystem, "staged", staged)
        imgindex.build(config_of(folder, output=str(copy)))
        assert content(copy) == expected
        assert not list(copy.rglob("*.partial"))
        for spec in (copy / "store").iterdir():
            assert content_addressed.names(str(spec))
