"""Searching with many queries, of which some are bad, and leaving out the images that queries are."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labeled_photos import write_photos
from PIL import Image

import imgindex
from imgindex.cli import main
from imgindex.errors import UsageError
from imgindex.inputs.listing import list_images
from imgindex.inputs.selection import Selection
from imgindex.models.plugins import Plugin
from imgindex.models.preprocess import decode
from imgindex.search.queries import Recipe, each_in, load, name_of_query
from imgindex.search.results import QueryError

QUICK = [
    "backbone.name=MobileNetV2", "backbone.weights=none", "backbone.image_size=32",
    "engine.precision=float32", "pca.dims=8", "publish.min_recall=0",
]  # fmt: skip
COPIES = 3


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, image_bytes: Callable[..., bytes]) -> Path:
    """Twelve different images in two folders, and three copies of one of them."""
    folder = tmp_path_factory.mktemp("search") / "photos"
    write_photos(folder, image_bytes)
    for number in range(COPIES):
        shutil.copy(folder / "a" / "00.png", folder / "b" / f"copy {number}.png")
    return folder


@pytest.fixture(scope="module")
def output(photos: Path) -> Path:
    output = photos.parent / "index"
    settings = [word for value in QUICK for word in ("--set", value)]
    assert main(["build", "--input", str(photos), "--output", str(output), *settings]) == 0
    return output


@pytest.fixture(scope="module")
def index(output: Path) -> imgindex.Index:
    return imgindex.Index.open(output)


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.jpg"
    path.write_text("no image")
    return path


Search = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture
def search(output: Path, capsys: pytest.CaptureFixture[str]) -> Search:
    def run(*arguments: object) -> tuple[int, str, list[str]]:
        capsys.readouterr()
        code = main(["search", str(output), *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err.splitlines()

    return run


def uris(result: Any) -> list[str]:
    if isinstance(result, dict):
        return [neighbor["uri"] for neighbor in result["neighbors"]]
    return [neighbor.uri for neighbor in result.neighbors]


class TestBadQueries:
    def test_the_others_are_answered_and_the_bad_one_is_told(
        self, photos: Path, bad: Path, tmp_path: Path, search: Search
    ) -> None:
        good = [photos / "a" / "02.png", photos / "b" / "03.png"]
        page = tmp_path / "page.html"
        queries = [good[0], bad, tmp_path / "gone.jpg", good[1]]
        code, printed, told = search(*queries, "-k", 2, "--html", page)
        assert code == 3
        blocks = printed.removesuffix("\n").split("\n\n")
        assert [block.splitlines()[0] for block in blocks] == list(map(str, good))
        assert [block.splitlines()[2].split()[-1] for block in blocks] == ["a/02.png", "b/03.png"]
        assert told == [
            f"imgindex: query {bad}: not_an_image: no image format that Pillow reads",
            f"imgindex: query {tmp_path / 'gone.jpg'}: cannot be read: No such file or directory",
            "imgindex: 2 of 4 queries could not be answered",
        ]
        shown = page.read_text()
        assert "not_an_image: no image format that Pillow reads" in shown
        assert "cannot be read: No such file or directory" in shown
        assert shown.count("data:image/") == 2 * 3

    def test_json_has_the_reason(self, photos: Path, bad: Path, search: Search) -> None:
        code, printed, _ = search(bad, photos / "a" / "02.png", "-k", 2, "--json")
        assert code == 3
        first, second = json.loads(printed)
        assert first == {
            "query": str(bad),
            "neighbors": [],
            "error": {
                "stage": "decode",
                "reason": "not_an_image",
                "message": "no image format that Pillow reads",
            },
        }
        assert (second["error"], uris(second)[0]) == (None, "a/02.png")

    def test_where_all_fail(self, bad: Path, search: Search) -> None:
        code, printed, told = search(bad, bad, "--json")
        assert (code, len(json.loads(printed)), len(told)) == (3, 2, 3)
        code, printed, told = search(bad)
        assert (code, printed, len(told)) == (3, "", 1)

    def test_in_python_each_has_its_own_error(self, index: imgindex.Index, photos: Path, bad: Path) -> None:
        good = photos / "a" / "02.png"
        queries = [bad, good.read_bytes(), b"", str(good), Image.open(good), np.zeros(8, np.float32)]
        results = list(index.search_each(queries, k=1))
        reasons = [result.error and (result.error.stage, result.error.reason) for result in results]
        assert reasons == [("decode", "not_an_image"), None, ("decode", "empty"), None, None, None]
        assert [uris(result) for result in results[1:5]] == [["a/02.png"], [], ["a/02.png"], ["a/02.png"]]
        with pytest.raises(imgindex.ImgindexError, match="not_an_image"):
            index.search([good, bad])

    def test_a_query_that_crashes_its_decoder(
        self, photos: Path, output: Path, tmp_path: Path, search: Search
    ) -> None:
        from trapped import trap

        (tmp_path / "trap.png").write_bytes(trap("segfault", 1))
        script = (
            f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
            "from functools import partial\n"
            "import trapped; from imgindex import cli; from imgindex.models import decoder, decoder_pool\n"
            "make = partial(decoder.DecoderProcess, trapped.COMMAND)\n"
            "decoder_pool.DecoderPool = partial(decoder_pool.DecoderPool, make=make); cli.run()\n"
        )
        queries = [tmp_path / "trap.png", photos / "a" / "02.png"]
        done = subprocess.run(
            [sys.executable, "-c", script, "search", output, *queries, "-k", "1", "--json"],
            capture_output=True, text=True,
        )  # fmt: skip
        crashed, answered = json.loads(done.stdout)
        assert (done.returncode, crashed["error"]["reason"], uris(answered)) == (3, "crashed", ["a/02.png"])


class TestManyQueries:
    def test_a_folder_a_glob_and_a_list_are_queries_each(
        self, photos: Path, tmp_path: Path, search: Search
    ) -> None:
        lists = {
            "names.txt": f"{photos}/a/02.png\n{photos}/b/03.png\n",
            "names.csv": f"path\n{photos}/a/02.png\n{photos}/b/03.png\n",
        }
        for name, text in lists.items():
            (tmp_path / name).write_text(text)
            code, printed, _ = search(tmp_path / name, "-k", 1, "--json")
            assert (code, [uris(result) for result in json.loads(printed)]) == (
                0,
                [["a/02.png"], ["b/03.png"]],
            )
        code, printed, _ = search(photos / "a", f"{photos}/b/0*.png", "-k", 1, "--json")
        results = json.loads(printed)
        assert code == 0
        queries = [result["query"] for result in results]
        assert queries[:6] == [f"{photos}/a/{number:02}.png" for number in range(0, 12, 2)]
        assert sorted(queries[6:]) == [f"{photos}/b/{number:02}.png" for number in range(1, 10, 2)]
        assert [f"{photos}/{uris(result)[0]}" for result in results[1:]] == queries[1:]

    def test_members_of_a_tar_are_queries(self, photos: Path, tmp_path: Path, search: Search) -> None:
        shutil.make_archive(str(tmp_path / "some"), "tar", photos, "a")
        code, printed, _ = search(tmp_path / "some.tar", "-k", 1, "--json", "--exclude_self")
        results = json.loads(printed)
        assert (code, len(results)) == (0, 6)
        assert results[0]["query"] == f"{tmp_path}/some.tar/a/00.png"
        assert all(uris(result) != [result["query"].partition(".tar/")[2]] for result in results)

    def test_more_than_are_embedded_together(self, index: imgindex.Index, photos: Path) -> None:
        paths = sorted(path for path in photos.rglob("0*.png")) * 20
        taken = 0

        def queries() -> Any:
            nonlocal taken
            for path in paths:
                taken += 1
                yield path

        results = index.search_each(queries(), k=4)
        first = next(results)
        assert taken == 128  # of 200
        assert [first, *results] == index.search(paths, k=4)

    def test_what_holds_no_images_is_a_bad_query(self, photos: Path, tmp_path: Path, search: Search) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "bad.csv").write_text("name\nx\n")
        sources = [tmp_path / "empty", f"{tmp_path}/*.gone", tmp_path / "no.txt", tmp_path / "bad.csv"]
        code, printed, told = search(*sources, photos / "a" / "02.png", "-k", 1)
        assert (code, printed.split()[-1]) == (3, "a/02.png")
        for source, line in zip(sources, told, strict=False):
            assert line.startswith(f"imgindex: query {source}: cannot be read: ")
            assert "--input" not in line
        assert told[-1] == "imgindex: 4 of 5 queries could not be answered"

    def test_what_is_there_by_that_name_is_no_glob(self, tmp_path: Path) -> None:
        (tmp_path / "a[1].png").write_bytes(b"x")
        assert list(each_in(f"{tmp_path}/a[1].png", [".png"], Counter())) == [f"{tmp_path}/a[1].png"]

    @pytest.mark.parametrize("pattern", ["*.png", "**"])
    def test_those_of_a_glob_come_in_the_order_of_their_paths(self, pattern: str, tmp_path: Path) -> None:
        names = ["10.png", "9.png", "a/x.png", "aa.png"] if pattern == "**" else ["10.png", "9.png", "aa.png"]
        for name in reversed(names):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(b"x")
        found = list(each_in(f"{tmp_path}/{pattern}", [".png"], Counter()))
        assert [name_of_query(query) for query in found] == [f"{tmp_path}/{name}" for name in names]

    def test_formats_that_this_machine_cannot_read_are_skipped_and_said(
        self, photos: Path, tmp_path: Path, search: Search, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.copy(photos / "a" / "02.png", tmp_path)
        for name in ("1.heic", "2.HEIC", "notes.txt"):
            (tmp_path / name).write_bytes(b"x")
        monkeypatch.setattr(Plugin, "is_installed", False)
        code, printed, told = search(tmp_path, "-k", 1)
        assert (code, printed.split()[-1]) == (0, "a/02.png")
        skipped = f"imgindex: query {tmp_path}: skipped 2 .heic, 1 .txt; .heic needs imgindex[heif]"
        assert told == [skipped]
        (tmp_path / "02.png").unlink()
        code, _, told = search(tmp_path)
        assert (code, told[0]) == (3, skipped)

    def test_a_page_says_how_many_queries_it_leaves_out(
        self, photos: Path, tmp_path: Path, search: Search, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("imgindex.commands.search._MAX_PICTURES", 7)
        code, _, _ = search(photos / "a", "-k", 2, "--html", tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text()
        assert (code, page.count("data:image/")) == (0, 6)
        assert "4 more queries are not shown" in page

    def test_an_index_of_one_dimension_tells_nothing_apart(
        self, tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        flags = [word for value in [*QUICK, "pca.dims=1"] for word in ("--set", value)]
        folder = tmp_path / "photos"
        shutil.copytree(photos, folder)
        assert main(["build", "--input", str(folder), "--output", str(tmp_path / "index"), *flags]) == 0
        capsys.readouterr()
        assert main(["search", str(tmp_path / "index"), str(folder / "a" / "00.png"), "-k", "1"]) == 0
        assert "have one dimension, in which every cosine is 1 or -1" in capsys.readouterr().err

    def test_more_neighbors_than_images(self, photos: Path, search: Search) -> None:
        code, _, told = search(photos / "a" / "00.png", "-k", 500)
        images = len(list(photos.rglob("*.png")))
        assert (code, told) == (0, [f"imgindex: -k is 500, but the index has only {images} images"])
        assert search(photos / "a" / "00.png")[2] == []


class TestExcludeSelf:
    @pytest.mark.parametrize("flags", [[], ["--exact"], ["--distinct"], ["--exact", "--distinct"]])
    def test_the_image_and_its_copies_are_left_out_and_k_are_given(
        self, flags: list[str], photos: Path, search: Search
    ) -> None:
        own = {"a/00.png", *(f"b/copy {number}.png" for number in range(COPIES))}
        for path in (photos / "a" / "00.png", photos / "b" / "copy 1.png"):
            code, printed, _ = search(path, "-k", 5, "--json", "--exclude_self", *flags)
            (result,) = json.loads(printed)
            assert code == 0
            assert len(uris(result)) == 5
            assert not own & set(uris(result))
            assert [neighbor["rank"] for neighbor in result["neighbors"]] == [1, 2, 3, 4, 5]
        code, printed, _ = search(photos / "a" / "00.png", "-k", 99, "--json", "--exclude_self", *flags)
        (result,) = json.loads(printed)
        assert len(uris(result)) == 11

    def test_what_is_left_is_what_was_nearest_otherwise(self, index: imgindex.Index, photos: Path) -> None:
        for path in sorted(photos.rglob("*.png")):
            (everything,) = index.search(path, k=15, exact=True)
            (others,) = index.search(path, k=15, exact=True, exclude_self=True)
            (itself,) = {n.sha256 for n in everything.neighbors if n.uri == str(path.relative_to(photos))}
            expected = [n.uri for n in everything.neighbors if n.sha256 != itself]
            assert uris(others) == expected

    def test_by_the_path_also_where_the_file_has_changed(
        self, output: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = shutil.copytree(photos, tmp_path / "photos")
        index = imgindex.Index.open(output)
        monkeypatch.setattr(index._opened, "manifest", replace(index.facts, input_root=str(folder)))
        path = folder / "a" / "00.png"
        path.write_bytes((folder / "b" / "05.png").read_bytes())
        (tmp_path / "link.png").symlink_to(path)
        monkeypatch.chdir(folder / "a")
        for query in (path, "00.png", folder / "b" / ".." / "a" / "00.png", tmp_path / "link.png"):
            (result,) = index.search(query, k=20, exclude_self=True)
            # It is what is indexed under its path, with that one's copies, and what has its bytes now.
            assert len(uris(result)) == 10
            assert not {"a/00.png", "b/copy 0.png", "b/05.png"} & set(uris(result))

    def test_bytes_know_themselves_and_pixels_do_not(self, index: imgindex.Index, photos: Path) -> None:
        data = (photos / "a" / "02.png").read_bytes()
        (result,) = index.search(data, k=3, exclude_self=True)
        assert "a/02.png" not in uris(result)
        assert index.search(data, k=1)[0].neighbors[0].uri == "a/02.png"
        for query in (Image.open(io.BytesIO(data)), np.zeros((9, 9, 3), np.uint8), np.zeros(8, np.float32)):
            with pytest.raises(UsageError, match="exclude_self needs the paths"):
                index.search(query, exclude_self=True)

    def test_an_image_that_is_not_indexed_has_all_neighbors(
        self, index: imgindex.Index, image_bytes: Callable[..., bytes]
    ) -> None:
        query = image_bytes(99)
        assert index.search(query, k=15, exclude_self=True) == index.search(query, k=15)


class TestLimits:
    """A query is read as the index has read its images."""

    def test_are_those_of_the_index(self, index: imgindex.Index, photos: Path) -> None:
        path = photos / "a" / "02.png"
        listed = list_images(str(photos / "a"), Selection((".png",)))
        (found,) = (replace(image, uri=str(path)) for image in listed if image.uri == path.name)
        size = path.stat().st_size
        for allowed, expected in ((size, None), (size - 1, "too_many_bytes")):
            recipe = replace(Recipe.of(index.facts), max_bytes=allowed)
            for query in (path, found):
                loaded = load(query, recipe, decode).value
                assert (loaded.reason if isinstance(loaded, QueryError) else None) == expected

    def test_a_pipe_is_a_bad_query(self, tmp_path: Path, search: Search) -> None:
        os.mkfifo(tmp_path / "pipe.jpg")
        code, _, told = search(tmp_path / "pipe.jpg")
        assert (code, "it is no regular file" in told[-1]) == (3, True)


def test_json_numbers_are_the_shortest_of_their_float32(photos: Path, search: Search) -> None:
    _, printed, _ = search(photos / "a" / "02.png", "-k", 15, "--json")
    (result,) = json.loads(printed, parse_float=str)
    numbers = [n[name] for n in result["neighbors"] for name in ("similarity", "distance")]
    assert len(numbers) == 30
    for number in numbers:
        assert float(number) == float(str(np.float32(number)))
        assert len(number.lstrip("-0.").replace(".", "").partition("e")[0]) <= 9


def test_what_decoders_complain_of_is_not_printed(output: Path, tmp_path: Path) -> None:
    file = io.BytesIO()
    bits = np.random.default_rng(1).integers(0, 2, (40, 40)).astype(bool)
    Image.fromarray(bits).save(file, "TIFF", compression="group4")
    data = bytearray(file.getvalue())
    data[8] ^= 0x55  # in the first line of pixels
    (tmp_path / "odd.tif").write_bytes(data)
    script = "from PIL import Image; import sys; Image.open(sys.argv[1]).load()"
    command = [sys.executable, "-c", script, tmp_path / "odd.tif"]
    assert "Fax4Decode" in subprocess.run(command, capture_output=True, text=True).stderr
    page = tmp_path / "page.html"
    done = subprocess.run(
        [sys.executable, "-m", "imgindex", "search", output, tmp_path / "odd.tif", "-k", "1", "--html", page],
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 3
    assert page.read_text().count("data:image/") == 2


def test_vectors_may_be_lists(index: imgindex.Index) -> None:
    vector = [0.5, -1.0, 0, 0, 0, 0, 0, 1]
    (given,) = index.search_vectors([vector], k=3)
    assert given == index.search_vectors(np.array([vector], np.float32), k=3)[0]
    several = ([vector[:3]], vector, [["a"] * 8], [vector, vector[:3]], [[float("nan")] * 8], [[1e300] * 8])
    for wrong in (*several, [[10**400] * 8]):
        with pytest.raises(UsageError, match="expected vectors of"):
            index.search_vectors(wrong)


class TestKnownQueries:
    """Whether the bytes of a query are indexed."""

    def test_the_answer_names_the_indexed_image(
        self, photos: Path, tmp_path: Path, search: Search, image_bytes: Callable[..., bytes]
    ) -> None:
        elsewhere = tmp_path / "elsewhere.png"
        shutil.copy(photos / "a" / "02.png", elsewhere)
        other = tmp_path / "other.png"
        other.write_bytes(image_bytes(99))
        code, printed, _ = search(elsewhere, other, "-k", 2)
        assert code == 0
        known, unknown = printed.removesuffix("\n").split("\n\n")
        assert known.splitlines()[-1] == "known: the file's bytes are indexed as a/02.png"
        assert "known" not in unknown
        _, printed, _ = search(elsewhere, other, "--json")
        known, unknown = json.loads(printed)
        assert known["known"] == "a/02.png"
        assert "known" not in unknown

    def test_of_copies_the_first_is_named(self, index: imgindex.Index, photos: Path) -> None:
        (result,) = index.search(photos / "b" / "copy 1.png")
        assert result.known == "a/00.png"
        assert index.search((photos / "b" / "copy 1.png").read_bytes())[0].known == "a/00.png"

    def test_pixels_and_vectors_have_no_bytes(self, index: imgindex.Index, photos: Path) -> None:
        with Image.open(photos / "a" / "02.png") as image:
            assert index.search(image)[0].known is None
        assert index.search_vectors(np.ones((1, 8)))[0].known is None

    def test_also_where_the_neighbors_are_filtered(self, index: imgindex.Index, photos: Path) -> None:
        (result,) = index.search(photos / "a" / "02.png", where="label=b")
        assert result.known == "a/02.png"
        assert {neighbor.label for neighbor in result.neighbors} == {"b"}

    def test_the_page_says_so(self, photos: Path, tmp_path: Path, search: Search) -> None:
        page = tmp_path / "page.html"
        search(photos / "a" / "02.png", "--html", page)
        assert "query, indexed as a/02.png" in page.read_text()


class TestVectors:
    """Vectors beside the answers."""

    def test_are_those_of_the_index(self, index: imgindex.Index, photos: Path, search: Search) -> None:
        photo = photos / "a" / "02.png"
        (result,) = index.search(photo, 3, vectors=True)
        assert result.vector is not None
        assert result.vector.shape == (8,)
        for neighbor in result.neighbors:
            assert neighbor.vector is not None
            lengths = np.linalg.norm(neighbor.vector) * np.linalg.norm(result.vector)
            assert neighbor.vector @ result.vector / lengths == pytest.approx(neighbor.similarity, abs=1e-5)
        _, printed, _ = search(photo, "-k", 3, "--json", "--vectors")
        (told,) = json.loads(printed)
        assert np.array_equal(np.array(told["vector"], np.float32), result.vector)
        for said, neighbor in zip(told["neighbors"], result.neighbors, strict=True):
            assert np.array_equal(np.array(said["vector"], np.float32), neighbor.vector)
        # What was found is found again by it.
        (again,) = index.search(result.vector, 3)
        assert uris(again) == uris(result)

    def test_only_where_they_are_asked_for(self, photos: Path, search: Search) -> None:
        _, printed, _ = search(photos / "a" / "02.png", "--json")
        assert "vector" not in printed
        code, _, told = search(photos / "a" / "02.png", "--vectors")
        assert (code, told) == (2, ["imgindex: --vectors are for JSON; give --json, too"])


class TestCombinedQueries:
    """Several images as one query."""

    def unit(self, index: imgindex.Index, path: Path) -> np.ndarray:
        vector = index.search(path, 1, vectors=True)[0].vector
        assert vector is not None
        return vector.astype(np.float64) / np.linalg.norm(vector.astype(np.float64))

    def test_the_query_is_the_mean_of_directions(self, index: imgindex.Index, photos: Path) -> None:
        paths = [photos / "a" / "02.png", photos / "b" / "03.png", photos / "a" / "04.png"]
        one, two, three = (self.unit(index, path) for path in paths)
        both = index.search_combined(paths[:2], k=5, vectors=True)
        np.testing.assert_allclose(both.vector, (one + two) / 2, atol=1e-6)
        unlike = index.search_combined(paths[:2], paths[2], 5, vectors=True)
        np.testing.assert_allclose(unlike.vector, one + two - three, atol=1e-6)
        assert both.query == f"{paths[0]}, {paths[1]}"
        assert unlike.query == f"{paths[0]}, {paths[1]}; not {paths[2]}"
        for result in (both, unlike):
            assert result.vector is not None
            (same,) = index.search(result.vector, 5)
            assert uris(same) == uris(result)

    def test_one_image_alone_is_itself(self, index: imgindex.Index, photos: Path) -> None:
        path = photos / "a" / "02.png"
        assert uris(index.search_combined(path)) == uris(index.search(path)[0])

    def test_all_images_that_are_given_can_be_left_out(self, index: imgindex.Index, photos: Path) -> None:
        paths = [photos / "a" / "00.png", photos / "b" / "03.png"]
        result = index.search_combined(paths, photos / "a" / "04.png", 30, exclude_self=True)
        copies = {f"b/copy {number}.png" for number in range(COPIES)}
        everything = {each.relative_to(photos).as_posix() for each in photos.rglob("*.png")}
        assert set(uris(result)) == everything - copies - {"a/00.png", "b/03.png", "a/04.png"}

    def test_by_the_command(self, index: imgindex.Index, photos: Path, search: Search) -> None:
        folder, other = photos / "a", photos / "b" / "03.png"
        code, printed, _ = search(folder, "--combine", "-k", 3, "--json")
        (told,) = json.loads(printed)
        images = sorted(folder.iterdir())
        assert (code, uris(told)) == (0, uris(index.search_combined(images, k=3)))
        assert told["query"] == f"{images[0]}, {images[1]}, {images[2]} and {len(images) - 3} more"
        _, printed, _ = search(images[0], "--negative", other, "-k", 3, "--json")
        assert uris(json.loads(printed)[0]) == uris(index.search_combined(images[0], other, 3))

    def test_a_bad_image_leaves_no_answer(self, photos: Path, bad: Path, search: Search) -> None:
        code, printed, told = search(photos / "a" / "02.png", bad, "--combine")
        assert (code, printed) == (3, "")
        assert told == [f"imgindex: query {bad}: not_an_image: no image format that Pillow reads"]

    def test_what_cannot_be_combined(self, index: imgindex.Index, photos: Path, search: Search) -> None:
        with pytest.raises(UsageError, match="needs at least one positive one"):
            index.search_combined([], photos / "a" / "02.png")
        with pytest.raises(UsageError, match="cancel each other"):
            index.search_combined([np.eye(8)[0], -np.eye(8)[0]])
        code, _, told = search(photos / "a" / "02.png", "--combine", "--html", "page.html")
        assert code == 2
        assert "a combined one has none; leave out --html" in told[0]
