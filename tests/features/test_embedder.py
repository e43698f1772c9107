"""Embedding a unit: every file ends as one row or one failure, and the rows hold their own features."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import trapped
from fake_engine import QuartersEngine
from hypothesis import given
from hypothesis import strategies as st

from imgindex.config import ImagesConfig
from imgindex.errors import InputError, OutputError, WorkerError
from imgindex.features import feature_store
from imgindex.features.embedder import EmbeddedUnit, UnitEmbedder
from imgindex.inputs.local_files import local_version
from imgindex.io import circuit_breaker, content_addressed, filesystem
from imgindex.models.decoder import Decoder, DecoderProcess
from imgindex.models.decoder_pool import DecoderPool
from imgindex.models.preprocess import DecodeError, decode
from imgindex.records import Failure, ImageFile, StoredImage

MAX_BYTES = 100_000


def halved(engine: type[QuartersEngine]) -> Callable[[int], QuartersEngine]:
    return lambda batch_size: engine(batch_size // 2)


def mean_feature(data: bytes) -> np.ndarray:
    """The unit feature of one encoded image."""
    feature = QuartersEngine(1).embed(decode(data, QuartersEngine.image_size).pixels[np.newaxis])[0]
    return feature / np.linalg.norm(feature)


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory, image_bytes: Callable[..., bytes]
) -> dict[str, ImageFile]:
    """Thirteen good images and one of each kind of bad one, by uri."""
    folder = tmp_path_factory.mktemp("images")
    contents = {
        f"good/{seed}.{kind.lower()}": image_bytes(seed, (10 + seed, 30 - seed), kind)
        for seed, kind in enumerate(["PNG", "JPEG", "BMP", "GIF", "WEBP"] * 3)
    }
    contents |= {
        "empty.png": b"",
        "truncated.jpg": image_bytes(20, (90, 90), "JPEG")[:900],
        "text.png": b"no image at all",
        "large.png": image_bytes(21, (101, 100)),
        "heavy.png": image_bytes(22, (9, 9)) + bytes(MAX_BYTES),
        "black.png": image_bytes(23),
        "vanished.png": image_bytes(24),
        "directory.png": b"",
    }
    listed = {}
    for uri, data in contents.items():
        path = folder / uri
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        if uri == "black.png":
            make_black(path)
        listed[uri] = as_listed(uri, path)
    (folder / "vanished.png").unlink()
    (folder / "directory.png").unlink()
    (folder / "directory.png").mkdir()
    return listed


def as_listed(uri: str, path: Path) -> ImageFile:
    status = path.stat()
    return ImageFile(uri, str(path), status.st_size, local_version(status))


def digest_of(file: ImageFile) -> str:
    return hashlib.sha256(Path(file.path).read_bytes()).hexdigest()


def make_black(path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (20, 20)).save(path)


FAILURES = {
    "empty.png": ("decode", "empty", "empty"),
    "truncated.jpg": ("decode", "truncated", "truncated"),
    "text.png": ("decode", "not_an_image", "no image format"),
    "large.png": ("decode", "too_many_pixels", "101 x 100 pixels are more than images.max_pixels (10000)"),
    "heavy.png": ("read", "too_many_bytes", f"images.max_bytes ({MAX_BYTES})"),
    "black.png": ("embed", "no_direction", "zero or not finite"),
    "vanished.png": ("read", "vanished", "No such file"),
    "directory.png": ("read", "not_a_file", "no regular file"),
}


# They take longer to start than embedders to embed a few images.
DECODERS = DecoderPool(2, partial(DecoderProcess, trapped.COMMAND))


@pytest.fixture(scope="module", autouse=True)
def _ends_decoders() -> Iterator[None]:
    yield
    DECODERS.close()


def embed_units(
    units: Sequence[list[ImageFile]],
    engine: QuartersEngine,
    directory: str,
    decoder: Decoder | None = DECODERS,
) -> tuple[list[EmbeddedUnit], list[int]]:
    """The units, and what `advance` was told."""
    advanced: list[int] = []
    limits = ImagesConfig(max_bytes=MAX_BYTES, max_pixels=10_000)
    write = partial(feature_store.write_rows, directory)
    with UnitEmbedder(engine, halved(type(engine)), limits, 2, write, advanced.append, decoder) as embedder:
        embedded = [unit for files in units for unit in embedder.embed(files)]
        return [*embedded, *embedder.finish()], advanced


def embed(
    listed: list[ImageFile],
    engine: QuartersEngine,
    directory: str,
    decoder: Decoder | None = DECODERS,
) -> tuple[EmbeddedUnit, list[int]]:
    """A single unit, and what `advance` was told."""
    (unit,), advanced = embed_units([listed], engine, directory, decoder)
    return unit, advanced


def test_every_file_ends_as_one_row_or_one_failure(files: dict[str, ImageFile], place: str) -> None:
    listed = sorted(files.values(), key=lambda file: hashlib.md5(file.uri.encode()).digest())
    unit, advanced = embed(listed, QuartersEngine(4), place)
    assert unit.images
    assert content_addressed.names(place) == [unit.images[0].chunk]
    images, features = feature_store.read_rows(
        place, unit.images[0].chunk, [image.row for image in unit.images]
    )
    failed = [failure.uri for failure in unit.failures]
    assert sorted(images["uri"].to_pylist() + failed) == sorted(files)
    assert sum(advanced) == len(files)
    # In the order of the listing, so that the same unit gives the same chunk.
    assert images["uri"].to_pylist() == [file.uri for file in listed if file.uri not in failed]
    for failure in unit.failures:
        stage, reason, message = FAILURES[failure.uri]
        assert (failure.stage, failure.reason) == (stage, reason)
        assert message in failure.message
        digest = None if stage == "read" else digest_of(files[failure.uri])
        assert failure.sha256 == digest
    # What has failed for its bytes is told with the version that holds them.
    assert {known.uri for known in unit.known} == {"empty.png", "truncated.jpg", "text.png", "black.png"}
    for known in unit.known:
        assert known.failure in unit.failures
        assert (known.size, known.version) == (files[known.uri].size, files[known.uri].version)
    for row, feature in zip(images.to_pylist(), features, strict=True):
        data = Path(files[row["uri"]].path).read_bytes()
        number = int(Path(row["uri"]).stem)
        assert (row["width"], row["height"], row["size"]) == (10 + number, 30 - number, len(data))
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        np.testing.assert_allclose(feature, mean_feature(data), atol=5e-4)  # float16
        assert abs(np.linalg.norm(feature.astype(float)) - 1) < 1e-3


def test_the_chunk_holds_the_listed_size_and_version(files: dict[str, ImageFile], tmp_path: Path) -> None:
    listed = files["good/0.png"]
    unit, _ = embed([listed], QuartersEngine(4), str(tmp_path))
    chunk = unit.images[0].chunk
    expected = StoredImage(listed.uri, listed.size, listed.version, digest_of(listed), chunk, 0)
    assert list(feature_store.read_keys(str(tmp_path), chunk)) == list(unit.images) == [expected]


def test_a_file_that_may_not_be_read(
    files: dict[str, ImageFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, limit: int) -> bytes:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(
        "imgindex.io.filesystem.read_regular", refuse
    )  # root, as which tests may run, reads all
    unit, _ = embed([files["good/0.png"]], QuartersEngine(4), str(tmp_path))
    assert [(f.stage, f.reason, f.message) for f in unit.failures] == [
        ("read", "permission_denied", "Permission denied")
    ]


@given(st.lists(st.booleans(), min_size=1, max_size=13), st.integers(1, 5))
def test_the_engine_runs_no_more_batches_than_needed_whatever_fails_between(
    files: dict[str, ImageFile], tmp_path_factory: pytest.TempPathFactory,
    good: list[bool], batch_size: int,
) -> None:  # fmt: skip
    names = sorted(uri for uri in files if uri.startswith("good/"))
    listed = [files[name if ok else "text.png"] for name, ok in zip(names, good, strict=False)]
    engine = QuartersEngine(batch_size)
    unit, advanced = embed(listed, engine, str(tmp_path_factory.getbasetemp() / "chunks"))
    assert engine.batches == -(-sum(good) // batch_size)
    assert (len(unit.images), len(unit.failures)) == (sum(good), len(good) - sum(good))
    assert sum(advanced) == len(good)


@pytest.mark.long
@given(
    st.lists(st.lists(st.sampled_from([*range(13), "text.png", "black.png"]), min_size=1), max_size=9),
    st.integers(1, 5),
)
def test_batches_are_full_across_units_and_every_unit_keeps_its_own(
    files: dict[str, ImageFile], tmp_path_factory: pytest.TempPathFactory,
    units: list[list[int | str]], batch_size: int,
) -> None:  # fmt: skip
    good = sorted(uri for uri in files if uri.startswith("good/"))
    names = [[good[name] if isinstance(name, int) else name for name in unit] for unit in units]
    engine = QuartersEngine(batch_size)
    folder = str(tmp_path_factory.getbasetemp() / "chunks")
    embedded, advanced = embed_units([[files[uri] for uri in unit] for unit in names], engine, folder)
    embeddable = sum(uri != "text.png" for unit in names for uri in unit)
    assert engine.batches == -(-embeddable // batch_size)
    assert sum(advanced) == sum(map(len, names))
    found = []
    for unit in embedded:
        kept = [image.uri for image in unit.images]
        found.append((kept, sorted(failure.uri for failure in unit.failures)))
        for image in unit.images:
            feature = feature_store.read_features(folder, image.chunk, [image.row])[0]
            data = Path(files[image.uri].path).read_bytes()
            np.testing.assert_allclose(feature, mean_feature(data), atol=5e-4)
    expected = [
        ([uri for uri in unit if uri in good], sorted(uri for uri in unit if uri not in good))
        for unit in names
    ]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_feature_without_direction_fails_its_image_alone(
    bad: float, files: dict[str, ImageFile], tmp_path: Path
) -> None:
    class Flawed(QuartersEngine):
        def embed(self, pixels: np.ndarray) -> np.ndarray:
            features = super().embed(pixels)
            features[1, :] = 0
            features[1, 3] = bad
            return features

    names = ["good/0.png", "good/1.jpeg", "good/2.bmp"]
    unit, _ = embed([files[name] for name in names], Flawed(3), str(tmp_path))
    assert [(f.uri, f.stage, f.reason) for f in unit.failures] == [("good/1.jpeg", "embed", "no_direction")]
    assert unit.images
    kept = [image.uri for image in unit.images]
    assert kept == ["good/0.png", "good/2.bmp"]
    features = feature_store.read_features(str(tmp_path), unit.images[0].chunk, [0, 1])
    for name, feature in zip(kept, features, strict=True):
        np.testing.assert_allclose(feature, mean_feature(Path(files[name].path).read_bytes()), atol=5e-4)


def test_nothing_is_written_where_every_image_fails(files: dict[str, ImageFile], tmp_path: Path) -> None:
    listed = [files[uri] for uri in FAILURES]
    unit, advanced = embed(listed, QuartersEngine(3), f"{tmp_path}/store")
    assert unit.images == ()
    assert sorted(failure.uri for failure in unit.failures) == sorted(FAILURES)
    assert sum(advanced) == len(FAILURES)
    assert not (tmp_path / "store").exists()


def features_of(unit: EmbeddedUnit, directory: str) -> dict[str, bytes]:
    """The bits of each image's feature, by uri."""
    if not unit.images:
        return {}
    rows = [image.row for image in unit.images]
    features = feature_store.read_features(directory, unit.images[0].chunk, rows)
    return {image.uri: feature.tobytes() for image, feature in zip(unit.images, features, strict=True)}


def listed_traps(folder: Path, **deeds: bytes) -> list[ImageFile]:
    listed = []
    for name, data in deeds.items():
        (folder / name).write_bytes(data)
        listed.append(as_listed(name, folder / name))
    return listed


def test_a_decoder_that_crashes_hangs_or_takes_all_memory_fails_that_image_alone(
    files: dict[str, ImageFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [file for uri, file in files.items() if uri.startswith("good/")]
    traps = listed_traps(
        tmp_path,
        segfault=trapped.trap("segfault"), hang=trapped.trap("hang"), memory=trapped.trap("memory"),
        exit=trapped.trap("exit", "3"), segfault_too=trapped.trap("segfault", "again"),
    )  # fmt: skip
    twin = replace(traps[0], uri="twin")
    traps[0] = replace(traps[0], duplicates=(twin,))
    listed = [traps[0], *good[:4], traps[1], traps[2], *good[4:], traps[3], traps[4]]
    monkeypatch.setattr("imgindex.models.decoder._WAITING", 100)  # for a core, which others may use
    decoders = DecoderPool(2, partial(DecoderProcess, trapped.COMMAND, time_limit=2))
    unit, advanced = embed(listed, QuartersEngine(4), f"{tmp_path}/store", decoders)
    decoders.close()
    assert sum(advanced) == len(listed) + 1
    expected = {
        "segfault": "crashed", "twin": "crashed", "hang": "timed_out", "memory": "out_of_memory",
        "exit": "crashed", "segfault_too": "crashed",
    }  # fmt: skip
    assert {failure.uri: failure.reason for failure in unit.failures} == expected
    assert {failure.stage for failure in unit.failures} == {"decode"}
    digests = {file.uri: digest_of(file) for file in [*traps, twin]}
    assert {failure.uri: failure.sha256 for failure in unit.failures} == digests
    without, _ = embed(good, QuartersEngine(4), f"{tmp_path}/store")
    # The same chunk: the same images in the same order, with the same bits.
    assert unit.images == without.images
    assert len(unit.images) == len(good)


def test_an_image_that_makes_the_engine_fail_fails_alone(files: dict[str, ImageFile], tmp_path: Path) -> None:
    class Picky(QuartersEngine):
        def embed(self, pixels: np.ndarray) -> np.ndarray:
            features = super().embed(pixels)
            if (abs(features - picked).max(axis=1) < 0.1).any():
                raise RuntimeError("Exception from somewhere:\n  not this one")
            return features

    names = sorted(uri for uri in files if uri.startswith("good/"))
    guilty = replace(files[names[5]], duplicates=(replace(files[names[5]], uri="twin.png"),))
    data = Path(guilty.path).read_bytes()
    picked = QuartersEngine(1).embed(decode(data, QuartersEngine.image_size).pixels[np.newaxis])
    directory = f"{tmp_path}/store"
    healthy, _ = embed([files[name] for name in names], QuartersEngine(4), directory)
    expected = features_of(healthy, directory)
    del expected[names[5]]
    unit, advanced = embed(
        [guilty if name == names[5] else files[name] for name in names], Picky(4), directory
    )
    assert features_of(unit, directory) == expected
    assert sum(advanced) == len(names) + 1
    message = "RuntimeError: Exception from somewhere: not this one"
    assert list(unit.failures) == [
        Failure(uri, "embed", "engine_error", message, digest_of(guilty)) for uri in (names[5], "twin.png")
    ]


def test_an_engine_that_always_fails_ends_the_run(files: dict[str, ImageFile], tmp_path: Path) -> None:
    class Broken(QuartersEngine):
        def embed(self, pixels: np.ndarray) -> np.ndarray:
            raise RuntimeError("no device")

    with pytest.raises(WorkerError, match=r"quarters fails for every image.*no device"):
        embed([files["good/0.png"]], Broken(3), f"{tmp_path}/store")
    assert not (tmp_path / "store").exists()


def test_a_storage_that_is_gone_ends_the_embedding_and_what_waits(
    files: dict[str, ImageFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = [], threading.Event()

    def fail(path: str, limit: int) -> bytes:
        begun.append(path)
        if len(begun) > circuit_breaker.LIMIT:
            ended.wait(60)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("imgindex.io.filesystem.read_regular", fail)
    monkeypatch.setattr("imgindex.inputs.image_reader.READS", circuit_breaker.Reads())
    embedder = UnitEmbedder(
        QuartersEngine(16), halved(QuartersEngine), ImagesConfig(), threads=1,
        write=lambda rows, features: (), advance=lambda count: None,
    )  # fmt: skip
    with pytest.raises(InputError, match=f"{circuit_breaker.LIMIT} reads in a row"):
        list(embedder.embed([files["good/0.png"]] * 200))
    assert len(begun) <= circuit_breaker.LIMIT + 1
    ended.set()
    # Of what waits nothing is begun either.
    embedder.close()
    assert len(begun) <= circuit_breaker.LIMIT + 1


@pytest.mark.parametrize("fits", [1, 2, 5])
def test_batches_that_do_not_fit_into_memory_are_made_smaller(
    fits: int, files: dict[str, ImageFile], tmp_path: Path
) -> None:
    class Heavy(QuartersEngine):
        def embed(self, pixels: np.ndarray) -> np.ndarray:
            if len(pixels) > fits:
                raise MemoryError(f"{len(pixels)} images")
            return super().embed(pixels)

    directory = f"{tmp_path}/store"
    units = [[files[f"good/{n}.png"]] * 3 for n in (0, 5, 10)]
    listed = sorted(files)
    healthy, _ = embed_units([[files[uri] for uri in listed], *units], QuartersEngine(16), directory)
    embedded, _ = embed_units([[files[uri] for uri in listed], *units], Heavy(16), directory)
    assert len(embedded) == 4
    assert [(u.images, u.failures) for u in embedded] == [(u.images, u.failures) for u in healthy]


def test_a_failed_write_ends_decoders_and_threads(files: dict[str, ImageFile], tmp_path: Path) -> None:
    (tmp_path / "store").write_text("no directory")
    threads, before = threading.active_count(), trapped.children(os.getpid())
    with pytest.raises(OutputError):
        embed([files["good/0.png"]], QuartersEngine(1), f"{tmp_path}/store", None)
    assert (threading.active_count(), trapped.children(os.getpid())) == (threads, before)


def test_images_of_another_filesystem(
    memory: dict[str, tuple[bytes, float]], image_bytes: Callable[..., bytes]
) -> None:
    data = image_bytes(1)
    memory["mem://bucket/in/a.png"] = data, 0.0
    listed = [ImageFile(uri, f"mem://bucket/in/{uri}", len(data), "0") for uri in ("a.png", "gone.png")]
    unit, _ = embed(listed, QuartersEngine(3), "mem://bucket/store")
    assert unit.images
    feature = feature_store.read_features("mem://bucket/store", unit.images[0].chunk, [0])[0]
    np.testing.assert_allclose(feature, mean_feature(data), atol=5e-4)
    assert [(failure.uri, failure.stage) for failure in unit.failures] == [("gone.png", "read")]


def test_duplicates_share_the_feature_or_the_failure_of_their_leader(
    files: dict[str, ImageFile], tmp_path: Path
) -> None:
    def with_duplicates(uri: str) -> ImageFile:
        duplicates = tuple(replace(files[uri], uri=f"{uri}-{n}", version=f"{n}") for n in range(3))
        return replace(files[uri], duplicates=duplicates)

    listed = [with_duplicates(uri) for uri in ("good/0.png", "text.png", "black.png")]
    engine = QuartersEngine(4)
    unit, advanced = embed(listed, engine, str(tmp_path))
    assert engine.batches == 1
    assert sum(advanced) == 12
    assert [(image.uri, image.version) for image in unit.images] == [
        ("good/0.png", files["good/0.png"].version),
        *((f"good/0.png-{number}", f"{number}") for number in range(3)),
    ]
    assert len({image.sha256 for image in unit.images}) == 1
    features = feature_store.read_features(str(tmp_path), unit.images[0].chunk, [0, 1, 2, 3])
    assert len({feature.tobytes() for feature in features}) == 1
    expected = sorted(
        (f"{uri}{end}", reason, end[1:] or files[uri].version)
        for uri, reason in (("text.png", "not_an_image"), ("black.png", "no_direction"))
        for end in ("", "-0", "-1", "-2")
    )
    assert sorted((failure.uri, failure.reason) for failure in unit.failures) == [e[:2] for e in expected]
    assert sorted((known.uri, known.failure.reason, known.version) for known in unit.known) == expected


def test_a_file_that_cannot_be_read_fails_without_its_duplicates(
    files: dict[str, ImageFile], tmp_path: Path
) -> None:
    good = files["good/0.png"]
    digest = digest_of(good)
    gone, twin, last = (replace(file, sha256=digest) for file in (
        files["vanished.png"], replace(good, uri="twin.png"), replace(good, uri="last.png")
    ))  # fmt: skip
    other = replace(files["good/5.png"], sha256=digest)  # has changed since it was hashed
    listed = replace(gone, duplicates=(other, twin, last))
    unit, advanced = embed([listed, files["good/1.jpeg"]], QuartersEngine(2), str(tmp_path))
    assert sorted((image.uri, image.sha256) for image in unit.images) == [
        ("good/1.jpeg", digest_of(files["good/1.jpeg"])), ("last.png", digest), ("twin.png", digest),
    ]  # fmt: skip
    assert [(f.uri, f.stage, f.reason) for f in unit.failures] == [
        ("vanished.png", "read", "vanished"), ("good/5.png", "read", "changed"),
    ]  # fmt: skip
    assert sum(advanced) == 5


def test_its_duplicates_have_been_tried_as_often_as_it_was(
    files: dict[str, ImageFile], tmp_path: Path
) -> None:
    class Killed:
        def decode(self, *_: object) -> NoReturn:
            raise DecodeError("killed", "by something else")

    twin = replace(files["good/0.png"], sha256=digest_of(files["good/0.png"]))
    listed = replace(files["vanished.png"], duplicates=(twin,), tries=1)
    unit, _ = embed([listed], QuartersEngine(2), str(tmp_path), Killed())
    assert [(known.uri, known.tries) for known in unit.known] == [("good/0.png", 2)]


def test_what_is_embedded_when_the_storage_goes_is_kept(
    files: dict[str, ImageFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imgindex.inputs.image_reader.READS", circuit_breaker.Reads())
    good = [file for uri, file in sorted(files.items()) if uri.startswith("good/")]
    directory = str(tmp_path / "store")
    read_regular = filesystem.read_regular

    def fail(path: str, limit: int) -> bytes:
        if path == "gone":
            raise OSError(5, "Input/output error")
        return read_regular(path, limit)

    monkeypatch.setattr("imgindex.io.filesystem.read_regular", fail)
    gone = replace(good[0], path="gone")
    with pytest.raises(InputError, match="what was embedded is kept"):
        embed_units([good[:4], [*good[4:], *[gone] * 100]], QuartersEngine(4), directory)
    kept = [
        image.uri
        for name in content_addressed.names(directory)
        for image in feature_store.read_keys(directory, name)
    ]
    assert sorted(kept) == [file.uri for file in good]
