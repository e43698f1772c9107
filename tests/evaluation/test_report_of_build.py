"""The page that every build writes beside its index."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_engine import factory_of, registered
from webpages import Page

import imgindex
from imgindex.evaluation import sample
from imgindex.evaluation.report import thumbnails
from imgindex.generations.layout import Output, read_manifest
from imgindex.generations.verify import verify
from imgindex.job import report

HOSTILE = "<img src=x onerror='a'>\"&amp;"
IMAGES = 12


@pytest.fixture(scope="module", autouse=True)
def engine(reports: None) -> Iterator[None]:
    with registered("quarters", factory_of()):
        yield


def build(folder: Path, **settings: Any) -> dict[str, Any]:
    """Builds or refreshes ``index`` from ``photos``."""
    return imgindex.build(
        imgindex.Config(
            input=str(folder / "photos"),
            output=str(folder / "index"),
            engine=imgindex.EngineConfig(name="quarters", precision="float32"),
            pca=imgindex.PcaConfig(dims=4),
            publish=imgindex.PublishConfig(min_recall=0.0, max_failure_rate=0.9),
            report=imgindex.ReportConfig(**settings),
        )
    )


def files_in(folder: Path) -> list[Path]:
    return sorted((folder / "index").rglob("report/*"))


def page_of(folder: Path) -> Page:
    page = Page(files_in(folder)[-1].read_text(encoding="utf-8"))
    page.assert_self_contained()
    page.assert_accessible()
    return page


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, image_bytes: Callable[..., bytes]) -> Path:
    folder = tmp_path_factory.mktemp("built")
    for number in range(IMAGES):
        path = folder / "photos" / f"{number % 2}{HOSTILE.replace('/', '')}" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(number, (30 + number, 25)))
    (folder / "photos" / f"bad{HOSTILE}.png").write_bytes(b"no image")
    build(folder)
    return folder


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """Photos without an index."""
    shutil.copytree(built / "photos", tmp_path / "photos")
    return tmp_path


def test_the_page_says_what_the_build_did(built: Path) -> None:
    page = page_of(built)
    assert page.headings() == [
        "Images", "Failures", "Index", "Quality by label", "Queries and their neighbors",
        "How near the nearest are", "Closest pairs", "Map", "Time",
    ]  # fmt: skip
    assert f"listed{IMAGES + 1}" in page.text
    assert "decode/not_an_image1" in page.text
    assert f"bad{HOSTILE}.png" in page.text
    assert f"in {IMAGES} images with {IMAGES} queries" in page.text
    assert {image["alt"] for image in page.named("img")}
    assert "onerror" not in {name for _, attributes in page.found for name in attributes}


def test_the_manifest_lists_the_page_and_verify_reads_it(built: Path) -> None:
    output = Output(str(built / "index"))
    manifest = read_manifest(output)
    assert manifest.report == "report/index.html"
    assert manifest.report in {file.path for file in manifest.files}
    assert manifest.warnings == ()
    assert verify(output.root).problems == ()
    (file,) = files_in(built)
    content = file.read_bytes()
    try:
        file.write_bytes(content[:-1] + b"X")
        (problem,) = verify(output.root).problems
        assert str(file) in problem
    finally:
        file.write_bytes(content)


def test_the_manifest_keeps_the_sampled_quality(built: Path) -> None:
    precision = read_manifest(Output(str(built / "index"))).precision
    assert precision is not None
    found = imgindex.evaluate(built / "index", k=precision.k, dims=[2])
    assert found.quality is not None
    assert (precision.images, precision.queries) == (IMAGES, IMAGES)
    assert precision.p_at_k == found.quality.p_at_k.micro
    assert precision.labels == {
        each.label: pytest.approx(each.p_at_k, abs=1e-6) for each in found.quality.per_label
    }


@pytest.mark.long
def test_a_refresh_says_what_has_changed(folder: Path) -> None:
    first = build(folder)
    next((folder / "photos").glob("0*/00.png")).unlink()
    second = build(folder)
    page = page_of(folder)
    assert f"Changes are against generation {first['generation']}" in page.text
    assert "removed1" in page.text
    assert f"In the generation before it was {100 * first['precision']['p_at_k']:.2f} %" in page.text
    assert second["precision"]["images"] == IMAGES - 1
    assert len(files_in(folder)) == 2


def test_no_report_where_none_is_wanted(folder: Path) -> None:
    manifest = build(folder, enabled=False)
    assert files_in(folder) == []
    assert (manifest["report"], manifest["precision"], manifest["warnings"]) == (None, None, [])


def test_a_report_that_fails_is_a_warning_and_stops_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise RuntimeError("no ink\n")

    monkeypatch.setattr(report, "build_page", fail)
    manifest = build(folder)
    assert manifest["warnings"] == ["the report could not be made: RuntimeError: no ink\\n"]
    assert (manifest["report"], files_in(folder)) == (None, [])
    assert len(imgindex.Index.open(folder / "index")) == IMAGES
    assert verify(str(folder / "index")).problems == ()


@pytest.mark.long
def test_thumbnails_are_bounded_in_number_and_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(folder, images=3)
    shown = {image["src"] for image in page_of(folder).named("img")}
    assert 0 < len(shown) <= 3
    monkeypatch.setattr(thumbnails, "read_image", lambda *_: pytest.fail("it is too late to read"))
    shutil.rmtree(folder / "index")
    assert build(folder, seconds=0)["warnings"] == []
    assert not page_of(folder).named("img")
    shutil.rmtree(folder / "index")
    assert build(folder, images=0)["warnings"] == []
    assert not page_of(folder).named("img")


def test_the_sample_is_bounded(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = Output(str(built / "index"))
    whole = sample.read_sample(output, read_manifest(output))
    monkeypatch.setattr(sample, "_ROWS", 5)
    some = sample.read_sample(output, read_manifest(output))
    assert whole is not None
    assert some is not None
    assert (len(whole), len(some)) == (IMAGES, 5)
    rows = [whole.uris.to_pylist().index(uri) for uri in some.uris.to_pylist()]
    assert (whole.vectors[rows] == some.vectors).all()


def test_a_manifest_of_before_there_were_reports_is_read(built: Path) -> None:
    manifest = read_manifest(Output(str(built / "index")))
    assert {"report", "precision", "warnings"} <= set(json.loads(json.dumps(dict(manifest.content))))
    golden = Path(__file__).parents[1] / "generations/golden/layers-digest"
    old = read_manifest(Output(str(golden)))
    assert (old.report, old.precision, old.warnings) == (None, None, ())
