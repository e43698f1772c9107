"""Builds from tars and lists: the index of the same files in a directory, and nothing is embedded twice."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from apache_beam import Map, Pipeline
from packed import tar_of

import imgindex
from imgindex.cli import main
from imgindex.inputs.transforms import ListImages
from imgindex.uris import name_of

CONFIG = imgindex.Config(
    backbone=imgindex.BackboneConfig(name="MobileNetV2", weights="none", image_size=32),
    engine=imgindex.EngineConfig(precision="float32"),
    pca=imgindex.PcaConfig(dims=4),
    publish=imgindex.PublishConfig(min_recall=0.0, max_failure_rate=0.9),
)


@pytest.fixture(scope="module")
def images(image_bytes: Any) -> dict[str, bytes]:
    return {f"{number % 2}/{number}.png": image_bytes(number) for number in range(8)}


@pytest.mark.long
def test_a_refresh_takes_and_leaves_out_what_the_patterns_say(
    images: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, data in images.items():
        for path in (tmp_path / "photos" / name, tmp_path / "photos/.git/objects" / name):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    for number in range(20):
        (tmp_path / f"photos/._{number}.png").write_bytes(b"no image")
        (tmp_path / f"photos/{number}.mp4").write_bytes(b"a video")
    config = replace(CONFIG, input=f"{tmp_path}/photos", output=f"{tmp_path}/index")
    config = replace(config, images=imgindex.ImagesConfig(extensions=(".png",)))
    first = imgindex.build(config)
    skipped = {".mp4": 20, "hidden files": 20, "hidden folders": 1}
    assert (first["ledger"]["listed"], first["ledger"]["failed"]) == (8, 0)
    assert first["ledger"]["skipped"] == skipped
    (nearest,) = imgindex.Index.open(str(config.output)).search(f"{config.input}/0/0.png", k=8)
    assert {neighbor.label for neighbor in nearest.neighbors} == {"0", "1"}
    without = replace(config, images=replace(config.images, exclude=("0/",)))
    second = imgindex.build(without)["ledger"]
    assert (second["removed"], second["unchanged"], second["embedded"]) == (4, 4, 0)
    assert second["skipped"] == {**skipped, "excluded folders": 1}
    assert imgindex.build(config)["ledger"]["added"] == 4
    strict = replace(without, publish=replace(CONFIG.publish, max_shrink=0.1))
    with pytest.raises(imgindex.errors.PublishRefusedError, match=r"left out .*1 excluded folder"):
        imgindex.build(strict)
    given = ["--set", "backbone.name=MobileNetV2", "--set", "backbone.weights=none", "--set", "pca.dims=4"]
    given += ["--set", "backbone.image_size=32", "--set", "engine.precision=float32"]
    given += ["--set", "images.extensions=[.png]", "--set", "publish.min_recall=0"]
    given += ["--input", str(config.input), "--output", str(config.output)]
    for flags, expected in ((["--dry_run"], "skipped      "), ([], "; skipped: ")):
        assert main(["build", *given, *flags]) == 0
        assert f"{expected}20 .mp4, 20 hidden files, 1 hidden folder" in capsys.readouterr().out
    assert main(["inspect", str(config.output)]) == 0
    assert "skipped      20 .mp4, 20 hidden files, 1 hidden folder" in capsys.readouterr().out


@pytest.fixture(scope="module")
def built(images: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> imgindex.Config:
    """A build of a directory with a plain file and a tar."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "photos").mkdir()
    (folder / "photos/plain.png").write_bytes(images["0/0.png"] + b"another")
    (folder / "photos/x.tar").write_bytes(tar_of(images))
    config = replace(CONFIG, input=f"{folder}/photos", output=f"{folder}/index")
    assert imgindex.build(config)["ledger"]["embedded"] == 9
    return config


def bytes_of(output: str) -> dict[str, str]:
    """The SHA-256 of each file of the live generation that the same images make the same."""
    files = imgindex.Index.open(output).manifest["files"]
    return {file["path"]: file["sha256"] for file in files if not file["path"].startswith("failures")}


@pytest.mark.long
def test_a_tar_makes_the_index_of_a_folder(
    built: imgindex.Config, images: dict[str, bytes], tmp_path: Path
) -> None:
    for name, data in images.items():
        path = tmp_path / "photos/x.tar" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    shutil.copy(f"{built.input}/plain.png", tmp_path / "photos")
    unpacked = replace(CONFIG, input=f"{tmp_path}/photos", output=f"{tmp_path}/index")
    imgindex.build(unpacked)
    assert bytes_of(str(unpacked.output)) == bytes_of(str(built.output))


def test_members_are_found_and_shown(
    built: imgindex.Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = imgindex.Index.open(str(built.output))
    query = index.image_path("x.tar/1/3.png")
    assert main(["search", str(built.output), query, "-k", "9", "--html", f"{tmp_path}/page.html"]) == 0
    assert "   1   1.000       0  x.tar/1/3.png\n" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert page.count('src="data:image/') == 10
    assert "cannot be shown</span>" not in page


MEMBERS = [f"x.tar/{number % 2}/{number}.png" for number in range(8)]


@pytest.mark.parametrize(
    "names", [["plain.png", "x.tar"], ["plain.png", *MEMBERS, *MEMBERS]], ids=["files", "members"]
)
def test_a_list_of_the_same_files_changes_nothing(names: list[str], built: imgindex.Config) -> None:
    path = Path(f"{built.input}/list.csv")
    path.write_text("uri\n" + "\n".join(names))
    outcome = imgindex.refresh(replace(built, input=str(path)))
    assert outcome.published is False
    assert (outcome.ledger["listed"], outcome.ledger["reused"], outcome.ledger["embedded"]) == (9, 9, 0)


def test_what_a_list_names_elsewhere_is_copied_and_shown(built: imgindex.Config, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{built.input}/plain.png\n{built.input}/x.tar/0/2.png\ngone.png\n")
    output = shutil.copytree(str(built.output), tmp_path / "index")
    config = replace(
        built, input=f"{tmp_path}/list.txt", output=str(output),
        publish=imgindex.PublishConfig(min_recall=0.0, max_failure_rate=0.9, max_shrink=1.0),
    )  # fmt: skip
    manifest = imgindex.build(config)
    assert (manifest["ledger"]["embedded"], manifest["ledger"]["copied"]) == (0, 2)
    assert manifest["ledger"]["failed_by_reason"] == {"list/vanished": 1}
    index = imgindex.Index.open(output)
    uri = f"{built.input}/x.tar/0/2.png"
    (result,) = index.search(index.image_path(uri), k=2)
    assert result.neighbors[0].uri == uri


@pytest.mark.long
def test_what_is_appended_to_a_tar_is_all_that_is_embedded(
    built: imgindex.Config, images: dict[str, bytes], image_bytes: Any, tmp_path: Path
) -> None:
    shutil.copytree(str(built.input), tmp_path / "photos")
    output = shutil.copytree(str(built.output), tmp_path / "index")
    (tmp_path / "photos/list.csv").unlink(missing_ok=True)
    config = replace(built, input=f"{tmp_path}/photos", output=str(output))
    tar = tmp_path / "photos/x.tar"
    tar.write_bytes(tar_of({**images, "new.png": image_bytes(100)}))
    os.utime(tar, (2e9, 2e9))
    ledger = imgindex.build(config)["ledger"]
    # The eight other members, and the plain image: the copy of the folder has other times than the original.
    assert (ledger["added"], ledger["changed"], ledger["embedded"], ledger["copied"]) == (1, 0, 1, 9)
    tar.write_bytes(tar.read_bytes()[:3000])
    outcome = imgindex.refresh(config, force=["max_shrink"])
    assert outcome.ledger["failed_by_reason"] == {"list/truncated_tar": 1}


def test_a_list_that_names_a_file_whose_name_is_not_utf_8(tmp_path: Path) -> None:
    name = b"caf\xe9.png"
    try:
        (tmp_path / os.fsdecode(name)).write_bytes(b"x")
    except OSError:
        pytest.skip("this filesystem takes UTF-8 names only")
    (tmp_path / "list.txt").write_bytes(name + b"\nmissing\xe9.png\n")
    with Pipeline() as pipeline:
        listed = pipeline | ListImages(str(tmp_path / "list.txt"), (".png",))
        _ = listed.files | "Files" >> Map(lambda file: (tmp_path / "found").write_text(file.uri))
        _ = listed.failures | "Failures" >> Map(lambda failure: (tmp_path / "failed").write_text(failure.uri))
    found, failed = ((tmp_path / kind).read_text() for kind in ("found", "failed"))
    assert [name_of(uri) for uri in (found, failed)] == [os.fsdecode(name), os.fsdecode(b"missing\xe9.png")]
