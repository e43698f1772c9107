"""Pages and JSON files that commands are asked for: they replace files of their kind, and nothing else."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from outputs import publish_features

from imgindex.cli import main
from imgindex.errors import OutputError, UsageError
from imgindex.io.asked_files import check_asked_files
from imgindex.search.page_frame import document

INDEX = "/no/such/index"
PAGE = document("title", [], "content")


@pytest.mark.parametrize("held", ["", PAGE], ids=["empty", "a page of imgindex"])
def test_a_page_replaces_what_holds_nothing_else(held: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(held)
    check_asked_files(INDEX, page=page)
    assert page.read_text() == held


@pytest.mark.parametrize(
    "held", [b"\xff\xd8\xff\xe0 a photo", b"<!doctype html><title>mine</title>", b"{}", b"a\n"]
)
def test_other_files_stay(held: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine"
    path.write_bytes(held)
    with pytest.raises(UsageError, match="mine is there already and is no page of imgindex; choose another"):
        check_asked_files(INDEX, page=path)
    with pytest.raises(UsageError, match="mine is there already and is no JSON file of imgindex"):
        check_asked_files(INDEX, json=path)
    assert path.read_bytes() == held


def test_a_page_is_no_json_file(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(PAGE)
    with pytest.raises(UsageError, match="is no JSON file of imgindex"):
        check_asked_files(INDEX, json=tmp_path / "page.html")


def test_one_name_for_both(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "x")
    with pytest.raises(UsageError, match=r"link is given both for the page and for the JSON file"):
        check_asked_files(INDEX, page=tmp_path / "link", json=tmp_path / "x")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written: Is a directory"):
        check_asked_files(INDEX, page=tmp_path)


def test_a_file_in_the_index(tmp_path: Path) -> None:
    page = tmp_path / "generations" / "g" / "report" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text(PAGE)
    with pytest.raises(UsageError, match="lies in the index; choose a name outside of it"):
        check_asked_files(str(tmp_path), page=page)


def test_a_folder_that_is_missing_or_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"x\.html: cannot be written: No such file or directory"):
        check_asked_files(INDEX, page=tmp_path / "no" / "x.html")
    with pytest.raises(OutputError, match=r"x\.html: cannot be written: Not a directory"):
        check_asked_files(INDEX, page=tmp_path / "file" / "x.html")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_nobody_may_write_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot be written: Permission denied"):
        check_asked_files(INDEX, page=tmp_path / "x.html")


def test_what_is_no_regular_file_loses_nothing() -> None:
    check_asked_files(INDEX, page=Path("/dev/null"), json=Path("/dev/stdout"))


def test_evaluate_refuses_before_its_work_and_replaces_its_own_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index, photo, written = tmp_path / "index", tmp_path / "photo.jpg", tmp_path / "found.json"
    publish_features(index, np.eye(8, dtype=np.float32), [f"{n}.jpg" for n in range(8)])
    photo.write_bytes(b"a photo")
    for flag in ("--json", "--html"):
        assert main(["evaluate", str(index), flag, str(photo)]) == 2
        assert capsys.readouterr().out == ""
    assert photo.read_bytes() == b"a photo"
    for dims in ("1", "2"):
        assert main(["evaluate", str(index), "--dims", dims, "--json", str(written)]) == 0
    assert json.loads(written.read_text())["sweep"][0]["dims"] == 2


@pytest.mark.parametrize("command", [["search", "{photo}"], ["compare", "{photo}", "{photo}"]])
def test_a_query_is_not_replaced_by_the_page(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index, photo = tmp_path / "index", tmp_path / "photo.jpg"
    publish_features(index, np.eye(8, dtype=np.float32), [f"{n}.jpg" for n in range(8)])
    photo.write_bytes(b"a photo")
    name, *images = (word.format(photo=photo) for word in command)
    assert main([name, str(index), *images, "--html", str(photo)]) == 2
    assert "is there already and is no page of imgindex" in capsys.readouterr().err
    assert photo.read_bytes() == b"a photo"
