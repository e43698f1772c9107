"""The page of an evaluation."""

import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from outputs import publish_features
from PIL import Image
from webpages import Page

import imgindex
from imgindex.cli import main
from imgindex.evaluation.collection import Collection, read_collection
from imgindex.evaluation.evaluate import evaluate_in
from imgindex.evaluation.quality import measure_quality
from imgindex.evaluation.report.evaluation_page import evaluation_page
from imgindex.evaluation.report.map_section import map_section
from imgindex.evaluation.report.neighborhoods import Neighborhoods, look_around
from imgindex.evaluation.report.pictures import Chosen, choose
from imgindex.evaluation.results import Advice, Quality

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
        "Quality by label", "Before you rely on these figures", "Queries and their neighbors", "Advice",
        "The ladder",
        "Dimensions and whitening", "Recall of unseen queries", "How near the nearest are",
        "Closest pairs", "Map",
    ]  # fmt: skip
    assert len([svg for svg in page.named("svg") if svg.get("class") == "chart"]) == CHARTS
    assert page.named("img")
    assert len(page.named("image")) > 3  # on the map
    assert found.quality is not None
    assert f"{100 * found.quality.p_at_k.micro:.2f} %" in page.text
    for term in ("P@4", "mAP@R", "recall@4", "macro", "at most", "features", "ms, p95, p99", "pca.whiten"):
        assert f"<dt><bdi>{term}</bdi></dt>" in page.markup  # what it means
    assert "24 queries" in page.text
    for rung in found.ladder:
        assert rung.method in page.text
    assert found.notes
    assert all(note in page.text for note in found.notes)


def test_advice_stands_there_with_its_command(evaluated: tuple[imgindex.Evaluation, Collection]) -> None:
    found, images = evaluated
    advice = Advice("pca.dims", "2", "pca.dims: 2: half", "imgindex build --set x=2")
    page = Page(evaluation_page(replace(found, advice=(advice,), no_advice=""), images))
    assert advice.text in page.text
    assert f"<code>{advice.command}</code>" in page.markup


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
    assert "No two images share a label" in page.text
    assert "Some queries" in page.text


def test_images_that_are_gone_are_placeholders(tmp_path: Path) -> None:
    publish(tmp_path, [f"a/{n}.jpg" for n in range(12)], tmp_path / "gone")
    page = page_of(tmp_path)
    assert not page.named("img")
    assert not page.named("image")
    assert (
        f"None of the 12 pictures can be shown: the images could not be read in {tmp_path / 'gone'}"
        in page.text
    )
    # Their names stand there without gray boxes.
    assert not any("cannot be shown" in each.get("aria-label", "") for each in page.named("div"))
    assert any(each["title"] == "a/3.jpg" for each in page.named("figure"))


def test_an_image_that_is_none_is_a_placeholder(photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    (root / "0.png").write_bytes((photos / "a/0.png").read_bytes())
    (root / "1.png").write_bytes(b"no image")
    (root / "2.png").mkdir()
    publish(tmp_path / "index", ["0.png", "1.png", "2.png"], root)
    page = page_of(tmp_path / "index")
    assert {image["alt"] for image in page.named("img")} == {"0.png"}
    assert f"2 of 3 pictures cannot be shown: the images could not be read in {root}" in page.text
    assert any("cannot be shown" in each.get("aria-label", "") for each in page.named("div"))


def around(labels: str, codes: list[tuple[float, ...]], folder: Path) -> tuple[Neighborhoods, Quality | None]:
    """Images whose vectors are as near to each other as their `codes` are, with a label each."""
    uris = [f"{label}/{n}.jpg" for n, label in enumerate(labels)]
    publish_features(folder, np.asarray(codes, np.float32), uris, dims=2)
    images = read_collection(folder)
    return look_around(images, 0, 2), measure_quality(images, np.arange(len(images)), 2, 0)


def on_circle(*degrees: float) -> list[tuple[float, ...]]:
    return [(math.cos(math.radians(each)), math.sin(math.radians(each)), 0.0) for each in degrees]


def titles(chosen: Chosen) -> list[str]:
    return [title for title, _ in chosen.galleries]


def test_no_label_without_a_wrong_neighbor_is_among_the_worst(tmp_path: Path) -> None:
    # Three images each of a, b and c; those of a lie apart, with one of them among those of c.
    codes = on_circle(0, 1, 241, 120, 121, 122, 240, 240.5, 242)
    chosen = choose(*around("aaabbbccc", codes, tmp_path), 0)
    shown = titles(chosen)
    assert [title.partition(" (")[0] for title in shown] == [
        "Among the worst: a", "Among the worst: c", "Among the best: b",
    ]  # fmt: skip
    assert "100.00 %" in shown[-1]


def test_nothing_is_among_the_worst_where_all_labels_are_alike(tmp_path: Path) -> None:
    chosen = choose(*around("aaabbb", on_circle(0, 1, 2, 120, 121, 122), tmp_path), 0)
    assert titles(chosen) == ["Some queries"]
    assert "P@2 is 100.00 % for every label" in chosen.text


def test_exactly_the_neighbors_that_count_are_shown_and_the_wrong_ones_are_marked(tmp_path: Path) -> None:
    publish_features(
        tmp_path,
        np.asarray(on_circle(0, 1, 241, 120, 121, 122, 240, 240.5, 242), np.float32),
        [f"{label}/{n}.jpg" for n, label in enumerate("aaabbbccc")],
        dims=2,
    )
    found, images = evaluate_in(tmp_path, k=2, dims=[2])
    page = Page(evaluation_page(found, images))
    rows = page.markup.split('<section class="row">')[1:]
    assert rows
    for row in rows:
        query, *neighbors = re.findall(r'<figure title="(./\d)\.jpg"( class="wrong")?>(.*?)</figure>', row)[
            :3
        ]
        assert len(neighbors) == row.partition("</section>")[0].count("<li>") == 2
        for title, wrong, content in neighbors:
            assert bool(wrong) == ("other label" in content) == (title[0] != query[0][0])


def test_no_picture_hides_a_point_of_the_map_and_no_two_labels_look_alike(tmp_path: Path) -> None:
    labels = "abcdefghijkl"
    publish(tmp_path, [f"{labels[n % 12]}/{n}.jpg" for n in range(36)])
    images = read_collection(tmp_path)
    near = look_around(images, 0, 2)
    shown = near.map(3)
    assert shown is not None
    drawn = map_section(near, shown, dict.fromkeys(range(36), "data:image/jpeg;base64,"))
    marks = drawn.partition('<svg class="map"')[2]
    assert marks.count("<path") == len(shown.images) == 36
    assert 0 < marks.rindex("<image") < marks.index("<path")
    legend = re.findall(r'<path (class="h." d="[^"]*")', drawn.partition('<svg class="map"')[0])
    assert len(legend) == len(set(legend)) == 11  # ten labels, and all others


def test_measures_are_on_the_page(output: Path) -> None:
    page = Page(evaluation_page(*evaluate_in(output, dims=[1], measures=["l1", "ncc"])))
    page.assert_accessible()
    assert "Similarity measures" in page.headings()
    assert {"l1", "ncc"} <= set(
        re.findall(r'<th scope="row" data-label="measure"><bdi>(\w+)</bdi>', page.markup)
    )
    assert "vectors" in page.text


def test_every_cell_of_a_table_says_its_column_on_a_narrow_page(output: Path) -> None:
    page = page_of(output)
    assert {cell["data-label"] for cell in page.named("td")} >= {
        "micro",
        "at most",
        "P@4",
        "recall@10",
        "pca.whiten",
    }


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
        "print(charts.line([1, 10], [0, 1], ('x', 'y'), 'alt', top=1)[:4])\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    environment = {**os.environ, "HOME": "/dev/null", "XDG_CONFIG_HOME": "/dev/null", "TMPDIR": str(tmp_path)}
    environment = {name: value for name, value in environment.items() if name != "MPLCONFIGDIR"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "<svg\n", "")
