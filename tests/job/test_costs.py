"""The cost model: what it says by hand, how it grows, what it measures against, and that the page agrees."""

import importlib.util
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgindex.cli import main
from imgindex.features import feature_store
from imgindex.features.key_hashes import key_of, sorted_keys
from imgindex.job import costs
from imgindex.job.costs import Workload
from imgindex.job.dry_run import count
from imgindex.models.ann.annoy import Annoy
from imgindex.models.pca import normalize
from imgindex.records import Failure, ImageFile, ImageRow

ROOT = Path(__file__).parents[2]

works = st.builds(
    Workload,
    images=st.integers(1, 10**10),
    new=st.just(0),
    embed_seconds=st.floats(0.001, 1),
    feature_dim=st.integers(1, 4096),
    dims=st.integers(1, 500),
    trees=st.integers(1, 100),
    items_per_shard=st.integers(1000, 10**8),
    fitted=st.booleans(),
)


def load(name: str) -> ModuleType:
    """A benchmark as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_the_page_are_those_of_the_model() -> None:
    scaling = load("scaling")
    text = scaling.PAGE.read_text()
    assert scaling.filled(text) == text, "run python benchmarks/scaling.py"


def test_predictions_are_near_what_builds_took() -> None:
    for line in load("scaling").measured().splitlines()[2:]:
        *_, ratio, _ = line.split("|")
        then = "2026-11-22" in line  # the machine was at half its speed
        assert (0.4 if then else 0.85) < float(ratio) < 1.15, line


def test_a_build_by_hand() -> None:
    work = Workload(images=2_000_000, new=500_000, embed_seconds=0.01, items_per_shard=1_000_000)
    assert (work.shards, work.shard_items) == (2, 1_000_000)
    seconds = costs.core_seconds(work)
    assert seconds["embed"] == 5000
    assert seconds["list"] == 2_000_000 * costs.LIST_SECONDS
    assert seconds["store"] == pytest.approx(500_000 * 2048 * costs.WRITE_SECONDS)
    elapsed = costs.elapsed_seconds(work, 10)
    assert elapsed["embed"] == 500
    assert elapsed["list"] == seconds["list"]  # one worker's
    assert elapsed["shards"] == seconds["shards"] / 2  # two shards, two cores
    assert costs.elapsed_seconds(work, 10, in_process=True)["project"] == seconds["project"]
    assert costs.nodes_asked(work, 400) == 800
    assert costs.stored_bytes(work)["index"] == 2 * Annoy().file_bytes(1_000_000, 150, {"trees": 40})
    assert costs.stored_bytes(work)["store"] == 2_000_000 * (4096 + 60 + 120)


def test_a_kept_basis_costs_no_moments() -> None:
    kept = costs.core_seconds(Workload(1000, 10, 0.1, fitted=False))
    assert (kept["moments"], kept["fit"]) == (0, 0)


@given(works, st.integers(1, 1000), st.floats(0, 1))
def test_what_grows_and_what_does_not(work: Workload, cores: int, share: float) -> None:
    work = replace(work, new=int(work.images * share))
    double = replace(work, images=2 * work.images, new=2 * work.new)
    before, after = costs.core_seconds(work), costs.core_seconds(double)
    for stage in ("list", "join", "embed", "store", "read", "project"):
        assert after[stage] == pytest.approx(2 * before[stage])
    assert after["shards"] >= 1.3 * before["shards"]
    assert (after["start"], after["fit"]) == (before["start"], before["fit"])
    elapsed = costs.elapsed_seconds(work, cores)
    total = sum(before.values())
    assert total / cores <= sum(elapsed.values()) * (1 + 1e-9)
    assert sum(elapsed.values()) <= total * (1 + 1e-9)
    # A worker's shard does not grow with the collection, once it has more than one.
    if work.shards > 1:
        assert double.shard_items <= 2 * work.items_per_shard
        assert (
            costs.worker_bytes(double)["shard"]
            <= 1.01 * costs.worker_bytes(replace(work, images=work.items_per_shard, new=0))["shard"]
        )
    assert costs.worker_bytes(double)["join"] <= 2 * costs.worker_bytes(work)["join"] + 1
    assert costs.shuffled_bytes(double) == pytest.approx(2 * costs.shuffled_bytes(work), rel=1e-6, abs=2)


def test_a_chunk_has_the_size_that_is_predicted(tmp_path: Path) -> None:
    features, _ = normalize(np.random.default_rng(0).random((512, 256), np.float32))
    uris = [f"{number % 7:030}/{number:025}.jpg" for number in range(512)]
    rows = [ImageRow(uri, 10_000, str(17 * 10**17), f"{n:064}", 300, 200) for n, uri in enumerate(uris)]
    feature_store.write_rows(str(tmp_path), rows, features)
    (chunk,) = tmp_path.iterdir()
    work = Workload(512, 512, 0.1, feature_dim=256, uri_bytes=len(uris[0]))
    assert chunk.stat().st_size == pytest.approx(costs.stored_bytes(work)["store"], rel=0.05)


def file(number: int, version: str = "1") -> ImageFile:
    return ImageFile(f"ä/{number}.jpg", f"/photos/ä/{number}.jpg", number, version)


@given(
    listed=st.lists(st.integers(0, 30), unique=True),
    failing=st.integers(0, 3),
    stored=st.sets(st.integers(0, 30)),
    bad=st.sets(st.integers(0, 30)),
    old=st.sets(st.integers(0, 30)),
    batch=st.integers(1, 9),
    trial=st.integers(0, 9),
)
def test_a_listing_is_counted_as_the_diff_would_split_it(
    listed: list[int], failing: int, stored: set[int], bad: set[int], old: set[int], batch: int, trial: int
) -> None:
    versions = [(n, "1") for n in stored] + [(n, "0") for n in old]
    keys = sorted_keys(key_of(n, version, f"ä/{n}.jpg") for n, version in versions)
    known = sorted_keys(key_of(n, "1", f"ä/{n}.jpg") for n in bad)
    files = [file(number) for number in listed]
    unusable = [Failure(str(number), "list", "unreadable", "") for number in range(failing)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imgindex.job.dry_run._BATCH_FILES", batch)
        counted = count([*files, *unusable], keys, known, trial)
    missing = [one for number, one in zip(listed, files, strict=True) if number not in stored | bad]
    assert (counted.files, counted.unusable) == (len(files), failing)
    assert counted.bytes == sum(listed)
    assert counted.uri_bytes == sum(len(one.uri.encode()) for one in files)
    assert counted.found == len(stored & set(listed))
    assert counted.failed == len((bad - stored) & set(listed))
    assert counted.missing == len(missing)
    assert counted.trial == missing[:trial]


@pytest.mark.parametrize(
    ("images", "feature_dim", "dims", "index", "basis", "store"),
    [  # as built of synthetic features, 40 trees, paths of 17 bytes
        (60, 1280, 59, 34_720, 309_225, 162_627),
        (600, 1280, 150, 626_688, 775_873, 1_609_392),
        (600, 2048, 150, 636_480, 1_239_745, 2_530_996),
        (60_000, 2048, 150, 62_646_768, 1_239_745, 252_924_004),
    ],
)
def test_sizes_are_those_of_synthetic_builds(
    images: int, feature_dim: int, dims: int, index: int, basis: int, store: int
) -> None:
    work = Workload(images, images, 0.1, feature_dim=feature_dim, dims=dims, uri_bytes=17)
    stored = costs.stored_bytes(work)
    assert stored["index"] == pytest.approx(index, rel=0.1)
    assert stored["basis"] == pytest.approx(basis, rel=0.01)
    assert stored["store"] == pytest.approx(store, rel=0.02)


@pytest.mark.parametrize(
    ("images", "items_per_shard", "uri_bytes", "metadata"),
    [(60, 10**6, 22.7, 8_091), (600, 10**6, 22.7, 56_160), (60_000, 10**6, 25, 5_333_403),
     (60_000, 10**4, 25, 5_507_894)],
)  # fmt: skip
def test_metadata_has_the_size_that_builds_have_written(
    images: int, items_per_shard: int, uri_bytes: float, metadata: int
) -> None:
    work = Workload(images, images, 0.1, items_per_shard=items_per_shard, uri_bytes=uri_bytes)
    assert costs.stored_bytes(work)["metadata"] == pytest.approx(metadata, rel=0.05)


def printed_bytes(text: str, after: str, before: str) -> float:
    """The size that stands between two texts."""
    found = re.search(rf"{after}([\d.]+) (B|KiB|MiB){before}", text)
    assert found, text
    return float(found[1]) * {"B": 1, "KiB": 2**10, "MiB": 2**20}[found[2]]


def written_bytes(output: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in output.glob(pattern) if path.is_file())


@pytest.mark.parametrize("images", [60, pytest.param(600, marks=pytest.mark.long)])
def test_a_dry_run_says_how_large_the_build_gets(
    images: int, tmp_path: Path, image_bytes: Callable[..., bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(images):
        path = tmp_path / "photos" / f"folder {number % 20}" / f"image_{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(number))
    output = tmp_path / "index"
    build = ["build", "--input", str(tmp_path / "photos"), "--output", str(output)]
    for setting in (
        "backbone.name=MobileNetV2", "backbone.weights=none", "backbone.image_size=32",
        "engine.precision=float32", "publish.min_recall=0",
    ):  # fmt: skip
        build += ["--set", setting]
    assert main([*build, "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert main(build) == 0
    generation = "generations/*"
    for pattern, after, before in (
        ("store/*/*", r"store +about [^,]*, ", " in all"),
        (f"{generation}/index/*", r"index +.*about ", "; "),
        (f"{generation}/metadata/*", r"; ", " of metadata"),
        (f"{generation}/pca/*", r", ", " of PCA basis"),
        (f"{generation}/manifest.json", r", ", " of manifest"),
        ("**/*", r"disk +about ", " more in all"),
    ):
        written = written_bytes(output, pattern)
        assert printed_bytes(said, after, before) == pytest.approx(written, rel=0.2), pattern
