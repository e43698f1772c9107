"""The check that images find those of their label as often as in the live generation."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from annoy import AnnoyIndex
from fake_engine import FakeFactory, QuartersEngine, registered
from outputs import publish_features
from PIL import Image

import imgindex
from imgindex.cli import main
from imgindex.errors import PublishRefusedError
from imgindex.evaluation import sample
from imgindex.evaluation.precision_change import PrecisionChange
from imgindex.generations.layout import Output, current_name, generation_names, read_manifest
from imgindex.generations.manifest import Manifest
from imgindex.job.precision_check import precision_change
from imgindex.models.spec import Spec
from imgindex.records import bucket_of

LABELS = ("blue", "green", "red")
COUNT = 60


def engine_of(signal: float, seed: int) -> type[QuartersEngine]:
    """An engine whose features are an image's colors times `signal`, and noise that `seed` draws."""

    class Mixed(QuartersEngine):
        spec = Spec(f"mixed-{signal}-{seed}", "", QuartersEngine.image_size, "avg", "", "", "")

        def embed(self, pixels: np.ndarray) -> np.ndarray:
            sums = pixels.astype(np.int64).sum(axis=(1, 2, 3)).tolist()
            noise = np.float32([np.random.default_rng([seed, each]).random(12) for each in sums])
            return signal * super().embed(pixels) / 255 + noise

    return Mixed


ENGINES = {"good": engine_of(8, 0), "bad": engine_of(0, 0), "fair": engine_of(1, 1), "alike": engine_of(1, 2)}


@pytest.fixture(scope="module", autouse=True)
def engines() -> Iterator[None]:
    """Registers all of `ENGINES` by their names."""

    def make(name: str) -> FakeFactory:
        return FakeFactory(lambda choice, threads: ENGINES[name](choice.batch_size))

    with (
        registered("good", make("good")),
        registered("bad", make("bad")),
        registered("fair", make("fair")),
        registered("alike", make("alike")),
    ):
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(COUNT):
        label = number % len(LABELS)
        pixels = generator.integers(0, 120, (16, 20, 3))
        pixels[:, :, 2 - label] += 120
        path = folder / LABELS[label] / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


def config_of(
    photos: Path, output: Path, engine: str, items_per_shard: int, **publish: Any
) -> imgindex.Config:
    return imgindex.Config(
        input=str(photos),
        output=str(output),
        engine=imgindex.EngineConfig(name=engine, precision="float32"),
        pca=imgindex.PcaConfig(dims=6),
        index=imgindex.IndexConfig(trees=5, items_per_shard=items_per_shard),
        publish=imgindex.PublishConfig(min_recall=0.0, **publish),
    )


@dataclass(frozen=True)
class Built:
    """An output of several generations of the same photos."""

    output: Output
    names: dict[str, str]  # of the generations
    log: str  # of the builds

    def manifest(self, name: str) -> Manifest:
        return read_manifest(self.output, self.names[name])

    def change(self, before: str, after: str) -> PrecisionChange:
        found = precision_change(self.output, self.names[before], self.manifest(after))
        assert found is not None
        return found


@pytest.fixture(scope="module")
def built(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Each generation by its engine and number of shards; none was refused."""
    output = tmp_path_factory.mktemp("built") / "index"
    stream = io.StringIO()
    handler, logger = logging.StreamHandler(stream), logging.getLogger("imgindex")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)  # as commands do
    names = {}
    for engine, shards, limit in [
        ("good", 1, 0.0),  # the first build
        ("bad", 1, None),
        ("fair", 1, 0.0),
        ("alike", 1, 0.0),
        ("good", 2, None),
        ("good", 3, 0.0),
    ]:
        config = config_of(photos, output, engine, -(-COUNT // shards), max_precision_drop=limit)
        manifest = imgindex.build(config)
        assert len(manifest["shards"]) == shards
        names[f"{engine} {shards}"] = manifest["generation"]
    logger.removeHandler(handler)
    logger.setLevel(level)
    return Built(Output(str(output)), names, stream.getvalue())


def precision_of(folder: Path) -> dict[str, float]:
    """P@4 by brute force of each image of a generation, from its files."""
    manifest = json.loads((folder / "manifest.json").read_text())
    uris, digests, rows = [], [], []
    for shard in manifest["shards"]:
        table = pq.read_table(folder / shard["metadata"])
        uris += table["uri"].to_pylist()
        digests += table["sha256"].to_pylist()
        index = AnnoyIndex(manifest["dims"], "angular")
        index.load(str(folder / shard["index"]))
        rows += [index.get_item_vector(item) for item in range(index.get_n_items())]
    vectors = np.float64(rows)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels, contents = np.array([uri.split("/")[0] for uri in uris]), np.array(digests)
    cosines = vectors @ vectors.T
    cosines[contents[:, np.newaxis] == contents] = -np.inf
    nearest = np.argsort(-cosines, axis=1)[:, :4]
    each = (labels[nearest] == labels[:, np.newaxis]).mean(axis=1)
    return {uri: float(value) for uri, value in zip(uris, each, strict=True)}


@pytest.mark.long
def test_a_fall_is_refused_unless_it_is_forced(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Output(str(tmp_path / "index"))
    live = imgindex.build(config_of(photos, tmp_path / "index", "good", COUNT))["generation"]
    config = config_of(photos, tmp_path / "index", "bad", COUNT, max_precision_drop=0.1)
    options = ["--set", "engine.name=bad", "--set", "publish.max_precision_drop=0", "--dry_run"]
    assert main(["build", "--input", str(photos), "--output", output.root, *options]) == 0
    assert "max_precision_drop" not in capsys.readouterr().err
    with pytest.raises(PublishRefusedError, match=r"^check max_precision_drop: P@4") as caught:
        imgindex.build(config)
    assert caught.value.exit_code == 4
    assert (current_name(output), generation_names(output)) == (live, [live])
    forced = imgindex.build(config, force=["max_precision_drop"])
    assert (forced["generation"], forced["forced"]) == (current_name(output), ["max_precision_drop"])
    assert forced["report"] is None  # the check does not need it

    change = precision_change(output, live, read_manifest(output))
    assert change is not None
    message = str(caught.value)
    assert "\n" not in message
    assert (
        f"P@4 by label is {change.after:.4f} where the live generation has {change.before:.4f}, by {COUNT} "
        f"images that both have; it falls by {change.before - change.after:.4f} (95 % interval "
        f"{-change.interval[1]:.4f} to {-change.interval[0]:.4f}), more than publish.max_precision_drop=0.1"
    ) in message
    assert f"most for {change.worst[0].label} ({change.worst[0].before:.3f} to " in message
    assert message.endswith("--force max_precision_drop")


@pytest.mark.long
def test_both_figures_are_those_of_brute_force(built: Built) -> None:
    before, after = (
        precision_of(Path(built.output.generation(built.names[name]))) for name in ("good 1", "bad 1")
    )
    uris = sorted(before)
    assert uris == sorted(after)
    figures = [float(np.mean([*each.values()])) for each in (before, after)]
    assert figures[0] > figures[1] + 0.3
    change = built.change("good 1", "bad 1")
    assert (change.k, change.queries) == (4, COUNT)
    assert [change.before, change.after] == pytest.approx(figures, abs=1e-12)
    differences = np.array([after[uri] - before[uri] for uri in uris])
    error = 1.96 * differences.std() / np.sqrt(COUNT)
    mean = differences.mean()
    assert change.interval == pytest.approx((mean - error, mean + error), abs=0.02)
    assert {each.label: [each.before, each.after] for each in change.worst} == {
        label: pytest.approx(
            [np.mean([each[uri] for uri in uris if uri.startswith(label)]) for each in (before, after)]
        )
        for label in LABELS
    }
    falls = [each.before - each.after for each in change.worst]
    assert falls == sorted(falls, reverse=True)


@pytest.mark.long
def test_nothing_is_compared_by_default_nor_by_a_first_build(built: Built) -> None:
    # Of six builds, "good 1" was the first, and two had no limit.
    assert imgindex.PublishConfig().max_precision_drop is None
    assert built.log.count("P@4 by label is") == 3


@pytest.mark.long
def test_a_fall_that_sampling_explains_is_published(built: Built) -> None:
    change = built.change("fair 1", "alike 1")  # published with a limit of 0
    assert change.after < change.before
    assert change.interval[0] < 0 < change.interval[1]


@pytest.mark.long
def test_another_index_of_the_same_features_is_no_change(built: Built) -> None:
    for shards in (2, 3):
        change = built.change("good 1", f"good {shards}")
        assert (change.queries, change.before, change.interval) == (COUNT, change.after, (0.0, 0.0))
        assert change.worst == ()


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 3), (1, 3)])
@pytest.mark.parametrize("rows", [5, 1000])
@pytest.mark.long
def test_two_generations_are_sampled_alike(
    before: int, after: int, rows: int, built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "_ROWS", rows)
    monkeypatch.setattr(sample, "_READ_ROWS", 10)  # one shard
    manifests = [built.manifest(f"good {count}") for count in (before, after)]
    both = sample.read_alike(built.output, manifests[0], manifests[1])
    assert both is not None
    uris = [sorted(each.uris.to_pylist()) for each in both]
    assert uris[0] == uris[1]
    # The first shards of both; of their common images as many as are wanted, if digests were spread evenly.
    read = [shards[0].items for shards in (manifests[0].shards, manifests[1].shards)]
    common = read[0] if before == after else max(read[0] / after, read[1] / before)
    folder = Path(built.output.generation(built.names["good 1"]))
    table = pq.read_table(folder / built.manifest("good 1").shards[0].metadata)
    digests = dict(zip(table["uri"].to_pylist(), table["sha256"].to_pylist(), strict=True))
    assert uris[0] == sorted(
        uri
        for uri, digest in digests.items()
        if {bucket_of(uri, before), bucket_of(uri, after)} == {0}
        if int(digest, 16) < rows / common * 16**64
    )
    assert uris[0]


@pytest.fixture
def pair(tmp_path: Path) -> Callable[[list[str]], tuple[Output, str, str]]:
    """Two generations of images with these uris and random features: the output and their names."""

    def publish(uris: list[str]) -> tuple[Output, str, str]:
        names = [
            publish_features(
                tmp_path / "pair",
                np.random.default_rng(number).random((len(uris), 8), np.float32),
                uris,
                number=number,
            )
            for number in (1, 2)
        ]
        return Output(str(tmp_path / "pair")), names[0], names[1]

    return publish


NOTHING = {
    "the images have no labels": [f"{number}.jpg" for number in range(20)],
    "9 images of the sample have a label": [f"{number % 3}/{number}.jpg" for number in range(9)],
    "0 images of the sample have a label": [f"{number}/{number}.jpg" for number in range(20)],
}


@pytest.mark.parametrize("why", NOTHING)
def test_where_there_is_nothing_to_compare_one_line_says_so(
    why: str, pair: Callable[[list[str]], tuple[Output, str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    output, live, name = pair(NOTHING[why])
    with caplog.at_level(logging.INFO, "imgindex"):
        assert precision_change(output, live, read_manifest(output, name)) is None
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(f"publish.max_precision_drop compares nothing: {why}")


def test_a_damaged_live_generation_does_not_stop_the_build_that_mends_it(
    pair: Callable[[list[str]], tuple[Output, str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    output, live, name = pair([f"a/{number}.jpg" for number in range(20)])
    (index,) = (Path(output.generation(live)) / "index").iterdir()
    index.write_bytes(index.read_bytes()[:-1])
    assert precision_change(output, live, read_manifest(output, name)) is None
    assert f"compares nothing: {index}" in caplog.text


def test_a_shard_that_is_too_large_to_be_copied_is_not_compared(
    pair: Callable[[list[str]], tuple[Output, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    output, live, name = pair([f"a/{number}.jpg" for number in range(20)])
    monkeypatch.setattr(sample, "_COMPARED_BYTES", 100)
    assert precision_change(output, live, read_manifest(output, name)) is not None
    monkeypatch.setattr(sample.filesystem, "is_local", lambda _: False)
    assert precision_change(output, live, read_manifest(output, name)) is None
    assert "too large to be copied" in caplog.text
