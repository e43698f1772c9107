"""The page of an evaluation."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from outputs import publish_features
from PIL import Image
from webpages import Page

import imgindex
from imgindex.cli import main
from imgindex.evaluation.collection import Collection
from imgindex.evaluation.evaluate import evaluate_in
from imgindex.evaluation.report.evaluation_page import evaluation_page

HOSTILE = "\"><script>alert(1)</script>&amp;<img src=x onerror='a'>"
CHARTS = 5  # the ladder, three of the sweep, the histogram


def publish(output: Path, uris: list[str], root: Path | str = "/photos", **settings: int) -> None:
    rows = np.random.default_rng(2).standard_normal((len(uris), 8)).astype(np.float32)
    publish_features(output, rows, uris, root=str(root), **settings)


def page_of(output: Path) -> Page:
    page = Page(evaluation_page(*evaluate_in(output, dims=[1], sample=50)))
    page.assert_self_contained()
    page.assert_accessible()
    return page


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small images of two labels."""
    root = tmp_path_factory.mktemp("photos")
    for n in range(24):
        path = root / "ab"[n % 2] / f"{n}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 20 + n), (10 * n, 128, 40)).save(path)
    return root


@pytest.fixture(scope="module")
def output(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("output")
    publish(folder, [f"{'ab'[n % 2]}/{n}.png" for n in range(24)], photos)
    return folder


@pytest.fixture(scope="module")
def evaluated(output: Path) -> tuple[imgindex.Evaluation, Collection]:
    return evaluate_in(output, dims=[1, 2])


def test_the_page_shows_all_that_was_found(evaluated: tuple[imgindex.Evaluation, Collection]) -> None:
    found, _ = evaluated
    page = Page(evaluation_page(*evaluated))
    page.assert_self_contained()
    page.assert_accessible()
    assert page.headings() == [
        "Quality by label", "Queries and their neighbors", "Advice", "The ladder",
        "Dimensions and whitening", "Recall of unseen queries", "How near the nearest are",
        "Closest pairs", "Map",
    ]  # fmt: skip
    assert len([svg for svg in page.named("svg") if svg.get("class") == "chart"]) == CHARTS
    assert page.named("img")
    assert len(page.named("image")) > 3  # on the map
    assert found.quality is not None
    assert f"{100 * found.quality.p_at_k.micro:.2f} %" in page.text
    assert "24 queries" in page.text
    for rung in found.ladder:
        assert rung.method in page.text


def test_the_same_evaluation_gives_the_same_page(evaluated: tuple[imgindex.Evaluation, Collection]) -> None:
    page = evaluation_page(*evaluated)
    assert page == evaluation_page(*evaluated)
    # It follows its reader into the dark: no chart has colors of its own.
    assert "prefers-color-scheme: dark" in page
    assert all("fill: #" not in svg and "stroke: #" not in svg for svg in page.split("<svg")[1:])


def test_the_page_does_not_need_the_generation_again(tmp_path: Path) -> None:
    publish(tmp_path / "index", [f"{'ab'[n % 2]}/{n}.jpg" for n in range(12)])
    evaluated = evaluate_in(tmp_path / "index", dims=[2])
    shutil.rmtree(tmp_path / "index")  # as if it had been pruned meanwhile
    assert "Map" in Page(evaluation_page(*evaluated)).headings()


def test_names_are_text_wherever_they_stand(tmp_path: Path) -> None:
    publish(tmp_path, [f"{HOSTILE.replace('/', '')}{n % 2}/{n}{HOSTILE}.jpg" for n in range(12)])
    page = page_of(tmp_path)
    assert "<script>alert(1)" in page.text
    assert not page.named("img")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_next_to_nothing_has_a_page(count: int, tmp_path: Path) -> None:
    publish(tmp_path, [f"a/{n}.jpg" for n in range(count)])
    assert f"Images{count}, of which {count} distinct" in page_of(tmp_path).text


def test_a_collection_without_labels_says_so(tmp_path: Path) -> None:
    publish(tmp_path, [f"{n}.jpg" for n in range(12)])
    page = page_of(tmp_path)
    assert "no two images share a label" in page.text
    assert "Some queries" in page.text


def test_images_that_are_gone_are_placeholders(tmp_path: Path) -> None:
    publish(tmp_path, [f"a/{n}.jpg" for n in range(12)], tmp_path / "gone")
    page = page_of(tmp_path)
    assert not page.named("img")
    assert not page.named("image")
    assert "12 pictures could not be read" in page.text
    assert any("cannot be shown" in each.get("aria-label", "") for each in page.named("div"))


def test_an_image_that_is_none_is_a_placeholder(photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    (root / "0.png").write_bytes((photos / "a/0.png").read_bytes())
    (root / "1.png").write_bytes(b"no image")
    (root / "2.png").mkdir()
    publish(tmp_path / "index", ["0.png", "1.png", "2.png"], root)
    page = page_of(tmp_path / "index")
    assert {image["alt"] for image in page.named("img")} == {"0.png"}
    assert "2 pictures could not be read" in page.text


def test_the_page_is_bounded(photos: Path, tmp_path: Path) -> None:
    publish(tmp_path, [f"{'long' * 20}{n % 400}/{'name' * 20}{n}.jpg" for n in range(2400)])
    assert len(page_of(tmp_path).markup) < 2_000_000


def test_the_command_writes_the_page(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "page.html"
    assert main(["evaluate", str(output), "--html", str(path)]) == 0
    assert Page(path.read_text(encoding="utf-8")).headings()
    assert main(["evaluate", str(output), "--html", str(tmp_path)]) == 3
    assert "cannot be written" in capsys.readouterr().err


def test_a_home_that_cannot_be_written_is_no_trouble(tmp_path: Path) -> None:
    code = (
        "from imgindex.evaluation.report import charts\n"
        "import sys; assert 'matplotlib' not in sys.modules\n"
        "print(charts.line([1, 10], [0, 1], ('x', 'y'), 'alt')[:4])\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    environment = {**os.environ, "HOME": "/dev/null", "XDG_CONFIG_HOME": "/dev/null", "TMPDIR": str(tmp_path)}
    environment = {name: value for name, value in environment.items() if name != "MPLCONFIGDIR"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "<svg\n", "")
