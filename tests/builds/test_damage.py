"""Damaged files of an output, and the build that finds them: repaired, or refused by name."""

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_refresh import CONFIG, content

import imgindex
from imgindex.cli import main
from imgindex.errors import DamagedError, OutputError
from imgindex.features import feature_store
from imgindex.generations.layout import Output, current_name
from imgindex.generations.verify import verify
from imgindex.io import content_addressed
from imgindex.job.launch import refresh

IMAGES = 24

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[:-2],
    "cut in half": lambda data: data[: len(data) // 2],
    "altered": lambda data: data[:9] + bytes([data[9] ^ 1]) + data[10:],
    "empty": lambda data: b"",
    "replaced": lambda data: b"PAR1 is how it begins and ends PAR1",
}


def damage(path: Path, how: str) -> None:
    if how == "huge":  # a hole: to read all of it takes more time and memory than there is
        os.truncate(path, 2**40)
    else:
        path.write_bytes(DAMAGE[how](path.read_bytes()))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, image_bytes: Callable[..., bytes]) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(IMAGES):
        (folder / f"{number:02}.png").write_bytes(image_bytes(number, (30 + number, 25)))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    output = tmp_path_factory.mktemp("base") / "index"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imgindex.features.transforms.UNIT_IMAGES", 8)
        imgindex.build(replace(CONFIG, input=str(photos), output=str(output)))
    return output


@pytest.fixture
def output(base: Path, tmp_path: Path) -> Path:
    shutil.copytree(base, tmp_path / "index")
    return tmp_path / "index"


def stored(folder: Path) -> dict[str, int]:
    """How many images each chunk holds."""
    return {
        name: len(list(feature_store.read_keys(str(folder), name)))
        for name in content_addressed.names(str(folder))
    }


@pytest.mark.parametrize("how", ["cut in half", "altered", "empty", "huge"])
@pytest.mark.long
def test_what_a_damaged_chunk_held_is_embedded_again(
    how: str, photos: Path, output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = content(output)
    (folder,) = (output / "store").iterdir()
    held = stored(folder)
    assert len(held) == 3
    name = min(held)
    damage(folder / name, how)
    (problem,) = verify(str(output)).problems
    assert name in problem
    with caplog.at_level(logging.WARNING):
        outcome = refresh(replace(CONFIG, input=str(photos), output=str(output)))
    assert [record.getMessage() for record in caplog.records if name in record.getMessage()]
    ledger = outcome.ledger
    assert (ledger["damaged_chunks"], ledger["embedded"], ledger["reused"]) == (
        1,
        held[name],
        IMAGES - held[name],
    )
    assert not outcome.published  # the live generation holds what would be written again
    assert content(output) == before
    assert verify(str(output)).problems == ()
    assert sum(stored(folder).values()) == IMAGES


@pytest.mark.long
def test_a_store_of_damaged_chunks_is_embedded_again_where_the_index_changes(
    photos: Path, output: Path
) -> None:
    (folder,) = (output / "store").iterdir()
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    index = replace(CONFIG.index, trees=7)
    manifest = imgindex.build(replace(CONFIG, input=str(photos), output=str(output), index=index))
    ledger = manifest["ledger"]
    assert (ledger["damaged_chunks"], ledger["embedded"], ledger["unchanged"]) == (3, IMAGES, IMAGES)
    scratch = output.with_name("scratch")
    imgindex.build(replace(CONFIG, input=str(photos), output=str(scratch), index=index))
    assert content(output) == content(scratch)


@pytest.mark.parametrize("how", ["altered", "huge"])
@pytest.mark.parametrize("which", ["CURRENT", "manifest.json"])
def test_a_refresh_of_a_damaged_generation_is_refused(
    which: str, how: str, photos: Path, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = output.rglob(which)
    damage(path, how)
    live = (output / "CURRENT").stat()
    # Something new, so that the build needs all that it goes on from.
    shutil.copytree(photos, tmp_path / "photos")
    shutil.copyfile(photos / "00.png", tmp_path / "photos" / "new.png")
    with pytest.raises(DamagedError, match=which):
        refresh(replace(CONFIG, input=str(tmp_path / "photos"), output=str(output)))
    assert (output / "CURRENT").stat().st_mtime_ns == live.st_mtime_ns
    assert len(list((output / "generations").iterdir())) == 1
    assert main(["verify", str(output)]) == 3
    printed = capsys.readouterr()
    assert which in printed.out + printed.err


@pytest.mark.parametrize(
    ("which", "how", "check_live"),
    [
        ("*.ann", "altered", 1 << 30),
        ("*.ann", "huge", 0),
        ("metadata-*", "altered", 0),
        ("basis.npz", "empty", 0),
    ],
)
def test_a_build_replaces_damaged_files_of_the_live_generation(
    which: str, how: str, check_live: int, photos: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(
        CONFIG, input=str(photos), output=str(output), publish=replace(CONFIG.publish, check_live=check_live)
    )
    before, live = content(output), current_name(Output(str(output)))
    (path,) = output.rglob(which)
    damage(path, how)
    outcome = refresh(config)
    assert outcome.published
    assert outcome.manifest["previous"] == live
    assert outcome.ledger["embedded"] == 0
    # A metadata shard that is found damaged when it is read says nothing of what was there.
    assert outcome.ledger["added"] == (IMAGES if "metadata" in which else 0)
    assert outcome.replaced == (() if "metadata" in which else (str(path),))
    assert content(output) == before
    assert verify(str(output)).problems == ()


@pytest.mark.long
def test_the_command_says_that_it_replaces_damaged_files(
    photos: Path, output: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    live = current_name(Output(str(output)))
    (path,) = output.rglob("*.ann")
    arguments = ["build", "--input", str(photos), "--output", str(output), "--config", str(output / "config")]
    (output / "config").write_text(
        "backbone: {name: MobileNetV2, weights: none, image_size: 32}\n"
        "engine: {precision: float32}\npca: {dims: 8}\npublish: {min_recall: 0}\n"
    )
    assert main(arguments) == 0
    assert "nothing has changed" in capsys.readouterr().out
    damage(path, "altered")
    with caplog.at_level(logging.WARNING):
        assert main(arguments) == 0
    assert [record.getMessage() for record in caplog.records if record.name == "imgindex.job.prepare"] == [
        f"damaged: {path} has other bytes than were written",
        "1 file of the live generation is damaged: this build publishes a new one, made of the store",
    ]
    assert f"it replaces {live}, of which 1 file is damaged\n" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "nothing has changed" in capsys.readouterr().out


@pytest.mark.long
def test_a_damaged_basis_is_taken_from_a_generation_that_has_the_same(
    photos: Path, output: Path, tmp_path: Path
) -> None:
    first = current_name(Output(str(output)))
    shutil.copytree(photos, tmp_path / "photos")
    # The same image once more, so that nothing asks for another basis.
    shutil.copyfile(photos / "00.png", tmp_path / "photos" / "new.png")
    config = replace(CONFIG, input=str(tmp_path / "photos"), output=str(output))
    second = refresh(config).manifest
    assert second["pca"]["fitted_in"] == first
    before = content(output)
    damage(output / "generations" / second["generation"] / "pca" / "basis.npz", "altered")
    third = refresh(config).manifest
    assert (third["pca"]["refit"], third["pca"]["fitted_in"]) == (False, first)
    assert content(output) == before
    # And where there is no other, one is fitted to all images.
    for name in (second["generation"], third["generation"], first):
        (output / "generations" / name / "pca" / "basis.npz").unlink()
    fourth = refresh(config).manifest
    assert (fourth["pca"]["refit"], fourth["pca"]["why"]) == (True, "the basis before is damaged")
    assert verify(str(output)).problems == ()


@pytest.mark.parametrize("how", [*DAMAGE, "huge"])
@pytest.mark.parametrize("which", ["*.ann", "metadata-*", "basis.npz", "manifest.json"])
def test_a_damaged_generation_is_not_searched(which: str, how: str, output: Path) -> None:
    (path,) = output.rglob(which)
    damage(path, how)
    with pytest.raises(DamagedError, match=path.name):
        imgindex.Index.open(output).search_vectors(np.ones((1, 8), np.float32))


def test_no_uri_of_the_metadata_leads_out_of_the_input(photos: Path, output: Path) -> None:
    index = imgindex.Index.open(output)
    assert index.image_path("a..b/..c.png") == f"{photos}/a..b/..c.png"
    for uri in ("../secret", "a/../../secret", "..", "a/.."):
        with pytest.raises(OutputError, match="leads out of the input"):
            index.image_path(uri)
    assert index.image_path("/etc/passwd") == f"{photos}//etc/passwd"
