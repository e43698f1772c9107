"""What builds that died have left, and what merely looks like it: only the former is deleted."""

import ast
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_upkeep import generate, keep, rows_of

from imgindex.commands import demo
from imgindex.errors import OutputError, UsageError
from imgindex.generations.layout import Output, delete_unfinished, generation_names, mark_detached
from imgindex.generations.prune import prune
from imgindex.io import filesystem

ROOT = Path(__file__).parents[2]
HEX = "0123456789abcdef" * 2
INDEX = "index-00000-of-00001.ann"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An output with two generations and a chunk of the store."""
    keep(str(tmp_path), "spec", "abc")
    for number in (0, 1):
        generate(str(tmp_path), number, "abc")
    return tmp_path


def test_files_in_the_making_go_where_a_build_writes_them(output: Path) -> None:
    live = output / "generations" / generation_names(Output(str(output)))[1]
    partials = [
        output / f".CURRENT.{HEX}.partial",
        output / "store" / "spec" / f".chunk-{HEX}.parquet.{HEX}.partial",
        output / "store" / "spec" / f".failed-{HEX}.parquet.{HEX}.partial",
        live / f".manifest.json.{HEX}.partial",
        live / "index" / f".{INDEX}.{HEX}.partial",
        live / "metadata" / f".metadata-00000-of-00001.parquet.{HEX}.partial",
        live / "pca" / f".basis.npz.{HEX}.partial",
        live / "failures" / f".failures-00000-of-00001.jsonl.{HEX}.partial",
        live / "report" / f".index.html.{HEX}.partial",
    ]
    (live / "report").mkdir()
    before = sorted(output.rglob("*"))
    for path in partials:
        path.write_bytes(b"half")
    delete_unfinished(Output(str(output)), time.time())
    assert sorted(output.rglob("*")) == before


@pytest.mark.parametrize(("hours", "stays"), [(23, True), (25, False)])
def test_files_in_the_making_stay_while_a_job_may_be_writing_them(
    hours: float, stays: bool, output: Path
) -> None:
    name = "20300101T000000Z-01234567"
    mark_detached(Output(str(output)), name)
    partials = [
        output / "store" / "spec" / f".chunk-{HEX}.parquet.{HEX}.partial",
        output / "generations" / name / "index" / f".{INDEX}.{HEX}.partial",
    ]
    for path in partials:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    delete_unfinished(Output(str(output)), time.time() + hours * 3600)
    assert [path.exists() for path in partials] == [stays, stays]


def test_files_of_other_people_stay_whatever_they_end_in(output: Path) -> None:
    theirs = [
        output / ".photo.jpg.partial",
        output / f".photo.jpg.{HEX}.partial",
        output / ".CURRENT.1234.partial",
        output / "downloads" / f".x.{HEX}.partial",
        output / "downloads" / f".CURRENT.{HEX}.partial",
        output / "store" / "spec" / "mine" / f".chunk-{HEX}.parquet.{HEX}.partial",
        output / "store" / "spec" / ".notes.partial",
        output / "generations" / "mine" / f".manifest.json.{HEX}.partial",
        output / "generations" / "mine" / "index" / f".{INDEX}.{HEX}.partial",
        *(folder / f".x.{HEX}.partial" for folder in (output / "generations").iterdir()),
    ]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
    folder = output / f".CURRENT.{HEX[::-1]}.partial"
    folder.mkdir()
    delete_unfinished(Output(str(output)), time.time())
    assert [path for path in theirs if not path.exists()] == []
    assert folder.is_dir()


def test_what_a_job_gives_another_name_meanwhile_is_no_error(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = output / "generations" / "20300101T000000Z-01234567"
    mark_detached(Output(str(output)), folder.name)
    whole = folder / "index" / INDEX
    filesystem.write_bytes(str(whole), b"whole")
    gone = folder / "index" / f".{INDEX}.{HEX}.partial"
    walk = os.walk

    def walk_before(*arguments: Any, **options: Any) -> Iterator[tuple[str, list[str], list[str]]]:
        for where, folders, names in walk(*arguments, **options):
            yield where, folders, [*names, gone.name] if Path(where) == gone.parent else names

    monkeypatch.setattr(os, "walk", walk_before)
    delete_unfinished(Output(str(output)), time.time())
    assert whole.read_bytes() == b"whole"


def no_answer(path: Path) -> None:
    """Lets every look at `path` fail for a reason that says nothing of whether it is there."""
    path.symlink_to(path.name)  # leads to itself


def test_a_generation_whose_manifest_cannot_be_looked_at_is_not_deleted(output: Path) -> None:
    first, live = generation_names(Output(str(output)))
    directory = output / "generations" / first
    (directory / "manifest.json").rename(directory / "elsewhere")
    no_answer(directory / "manifest.json")
    with pytest.raises(OutputError, match=r"cannot look at .*manifest\.json"):
        delete_unfinished(Output(str(output)), time.time())
    with pytest.raises(OutputError, match=r"cannot look at .*manifest\.json"):
        prune(str(output), keep=1, grace_seconds=0)
    assert (directory / "index" / INDEX).is_file()
    assert (output / "generations" / live).is_dir()


def test_generations_that_cannot_be_listed_do_not_take_their_features_along(output: Path) -> None:
    (output / "generations").rename(output / "elsewhere")
    no_answer(output / "generations")
    with pytest.raises(OutputError, match=r"cannot list .*generations"):
        prune(str(output), keep=1, grace_seconds=0)
    assert len(rows_of(str(output))) == 3


def test_a_demo_does_not_write_to_a_folder_that_it_cannot_look_into(tmp_path: Path) -> None:
    no_answer(tmp_path / "demo")
    with pytest.raises(OutputError, match="cannot look at"):
        demo.make_demo(tmp_path / "demo")
    (tmp_path / "other" / "images").mkdir(parents=True)
    (tmp_path / "other" / "images" / "mine.png").write_bytes(b"")
    with pytest.raises(UsageError, match="nor an earlier demo"):
        demo.make_demo(tmp_path / "other")


# Each answers no where it could not look. Python's own do from 3.14 on for whatever error.
ANSWERS_NO = {"exists", "is_file", "is_dir", "lexists", "isfile", "isdir"}

# Where nothing is deleted or overwritten for such an answer, and why it is asked.
HARMLESS = {
    ("pipeline/inputs/source.py", "input_root"): "which kind of input it is",
    ("pipeline/inputs/source.py", "is_list"): "which kind of input it is",
    ("pipeline/inputs/pieces.py", "_local_paths"): "which kind of input it is, or an error",
    ("pipeline/presets.py", "config_path"): "a file or a shipped config",
    ("pipeline/search/queries.py", "is_several"): "which kind of query it is",
    (
        "pipeline/inputs/source.py",
        "_is_there",
    ): "a name or a pattern; what cannot be looked at fails as it is read",
    (
        "pipeline/inputs/local_files.py",
        "_matches",
    ): "links that lead nowhere, which a build lists as failures",
    ("pipeline/commands/demo.py", "_command"): "how a printed command begins",
    ("models/hub.py", "is_folder"): "which kind of backbone it is, or an error",
    ("models/hub.py", "_read"): "an error",
    ("pipeline/commands/demo.py", "make_demo"): "which of the images are folders",
    ("pipeline/commands/demo.py", "_is_new_or_a_demo"): "no is an error",
    ("pipeline/training/labeled_folder.py", "list_labeled"): "no is an error",
    ("pipeline/training/train.py", "_finished"): "WorkFolder, which asks filesystem.exists",
    ("pipeline/commands/doctor/output.py", "_existing"): "where to try the filesystem",
    ("pipeline/io/filesystem.py", "list_folders"): "os.DirEntry, which raises",
    ("pipeline/io/filesystem.py", "delete_partials"): "os.DirEntry; no deletes nothing",
    ("models/backbones.py", "is_file"): "no is an error, or another place of the model is tried",
    ("models/frameworks.py", "_load_keras"): "no has Keras use a folder of ours",
    ("models/engines/tensorflow.py", "gpu_driver"): "whether there is a GPU",
    ("models/engines/openvino_conversion.py", "_cache_key"): "a name or a file, whose digest decides",
    ("models/engines/openvino_conversion.py", "_convert"): "yes and a damaged model deletes",
}


def test_nothing_is_deleted_because_a_file_could_not_be_looked_at() -> None:
    asked = set()
    for path in sorted([*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "models").rglob("*.py")]):
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef):
                continue
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                    # filesystem.exists raises where it could not look.
                    ours = isinstance(call.func.value, ast.Name) and call.func.value.id == "filesystem"
                    if call.func.attr in ANSWERS_NO and not ours:
                        asked.add((path.relative_to(ROOT).as_posix(), function.name))
    assert asked - HARMLESS.keys() == set(), "use filesystem.exists, or say here why a wrong no does no harm"
