"""What must hold of a build from and to an object store, whichever it is."""

import contextlib
import gzip
import hashlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import pytest
from packed import tar_of
from PIL import Image

import imgindex
from imgindex.cli import main
from imgindex.commands.doctor.output import check_object_store
from imgindex.errors import OutputError
from imgindex.generations import prune, rollback, verify
from imgindex.inputs.key_ranges import KeyRange, cut, objects_of
from imgindex.inputs.listing import list_images
from imgindex.inputs.selection import Selection
from imgindex.io import filesystem, output_lock
from imgindex.io.byte_ranges import reader
from imgindex.io.output_lock import writer_lock

BACKBONE = imgindex.BackboneConfig(name="MobileNetV2", weights="bundled", image_size=32)


# How often two builds start together; CI does it less often.
PAIRS = int(os.environ.get("IMGINDEX_PAIRS", "3"))

NO_SERVER = "needs the extra integration: make test-integration installs it"


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """The endpoint of a server of S3 in this process."""
    boto3 = pytest.importorskip("boto3", reason=NO_SERVER)
    moto = pytest.importorskip("moto.server", reason=NO_SERVER)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    running = moto.ThreadedMotoServer("127.0.0.1", port, verbose=False)
    running.start()
    endpoint = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        one_by_one(patch)
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="photos")
        yield endpoint
    running.stop()


def one_by_one(patch: pytest.MonkeyPatch) -> None:
    """Has moto look at a condition and write in one step, as S3 does."""
    responses = pytest.importorskip("moto.s3.responses", reason=NO_SERVER)
    put_object, writing = responses.S3Response.put_object, threading.Lock()

    def put_alone(response: object) -> object:
        with writing:
            return put_object(response)

    patch.setattr(responses.S3Response, "put_object", put_alone)


def write_photos(folder: Path) -> None:
    """Writes small images of noise, in folders."""
    for number in range(24):
        path = folder / f"class {number % 3}" / f"{number:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (40, 48, 3), np.uint8)
        Image.fromarray(pixels).save(path)


def upload(folder: Path, target: str) -> None:
    """Copies a local folder to an object store."""
    for path in folder.rglob("*.*"):
        filesystem.write_bytes(
            filesystem.join(target, path.relative_to(folder).as_posix()), path.read_bytes()
        )


def settings(source: str | Path, output: str | Path) -> imgindex.Config:
    return imgindex.Config(
        input=str(source),
        output=str(output),
        backbone=BACKBONE,
        engine=imgindex.EngineConfig(precision="float32"),
        index=imgindex.IndexConfig(items_per_shard=10),
    )


def digests(output: str) -> dict[str, str]:
    """The SHA-256 of each file of the live generation that the same images make the same."""
    manifest = imgindex.Index.open(output).manifest
    return {
        file["path"]: file["sha256"]
        for file in manifest["files"]
        if file["path"].partition("/")[0] in ("index", "metadata", "pca")
    }


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``photos`` and an ``index`` of them."""
    folder = tmp_path_factory.mktemp("local")
    write_photos(folder / "photos")
    imgindex.build(settings(folder / "photos", folder / "index"))
    return folder


@pytest.fixture(scope="module")
def built(bucket: str, local: Path) -> imgindex.Config:
    """A build from the bucket and to it."""
    upload(local / "photos", f"{bucket}/in/photos")
    config = settings(f"{bucket}/in/photos", f"{bucket}/out/index")
    assert imgindex.build(config)["ledger"]["indexed"] == 24
    return config


class Builder:
    """A process that builds as often as it is asked to."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).parent / "one_of_two.py"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def start(self, *what: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what, default=str) + "\n")
        self._process.stdin.flush()

    def end(self) -> tuple[int, str]:
        """The exit code and what it has said."""
        assert self._process.stdout is not None
        answer = next(line for line in self._process.stdout if line.startswith("["))
        code, said = json.loads(answer)
        return code, said


def how_it_ended(code: int, said: str) -> str:
    """In a word; an error that a person could not make sense of is none of them."""
    if code == 0:
        return "unchanged" if "nothing has changed" in said else "published"
    assert code == 3, said
    (error,) = [line for line in said.splitlines() if line.startswith("imgindex: ")]
    reasons = ("is being written", "took over", "is live", "in the same moment")
    return next(why for why in reasons if why in error)


class ObjectStoreTests:
    """Inherited where a fixture `bucket` gives the root of an empty bucket; others are imported."""

    def test_the_index_has_the_bytes_of_a_local_one(self, built: imgindex.Config, local: Path) -> None:
        assert digests(str(built.output)) == digests(f"{local}/index")

    def test_commands(
        self, built: imgindex.Config, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        # As other processes run them, where no pipeline has set any options.
        from apache_beam.io.filesystems import FileSystems

        FileSystems.set_options(None)
        output = str(built.output)
        query = f"{built.input}/class 1/004.jpg"
        assert main(["search", output, query, "-k", "3", "--json", "--html", f"{tmp_path}/page.html"]) == 0
        nearest = json.loads(capsys.readouterr().out)[0]["neighbors"][0]
        assert (nearest["uri"], round(nearest["similarity"], 3)) == ("class 1/004.jpg", 1.0)
        page = (tmp_path / "page.html").read_text()
        assert page.count('src="data:image/') == 4
        assert main(["verify", output]) == 0
        assert "all bytes are as they were written" in capsys.readouterr().out
        assert main(["inspect", output]) == 0
        assert "24 listed, 24 indexed, 0 failed" in capsys.readouterr().out
        assert check_object_store(output).level == "ok"

    def test_refresh_rollback_and_prune(self, bucket: str, local: Path) -> None:
        source, output = f"{bucket}/in/refreshed", f"{bucket}/out/refreshed"
        config = settings(source, output)
        upload(local / "photos", source)
        first = imgindex.build(config)
        assert imgindex.refresh(config).published is False
        filesystem.delete(f"{source}/class 0/000.jpg")
        filesystem.write_bytes(f"{source}/new.jpg", filesystem.read_bytes(f"{source}/class 1/001.jpg"))
        second = imgindex.build(config)
        counts = {
            kind: second["ledger"][kind] for kind in ("added", "removed", "embedded", "copied", "reused")
        }
        assert counts == {"added": 1, "removed": 1, "embedded": 0, "copied": 1, "reused": 23}
        assert filesystem.read_bytes(f"{output}/CURRENT").decode() == f"{second['generation']}\n"
        assert verify.verify(output).problems == ()
        assert rollback.rollback(output) == (second["generation"], first["generation"])
        rollback.rollback(output, second["generation"])
        pruned = prune.prune(output, 1, grace_seconds=-60)
        assert (pruned.generations, pruned.rows) == ((first["generation"],), 1)
        assert filesystem.list_folders(f"{output}/generations") == [second["generation"]]
        assert verify.verify(output).problems == ()
        assert json.loads(filesystem.read_bytes(f"{output}/.lock"))["released"] is True

    def test_tars_and_lists(self, built: imgindex.Config, bucket: str, local: Path) -> None:
        photos = local / "photos"
        names = sorted(path.relative_to(photos).as_posix() for path in photos.glob("*/*.jpg"))
        filesystem.write_bytes(f"{built.input}/list.txt", "\n".join(names).encode())
        listed = imgindex.refresh(replace(built, input=f"{built.input}/list.txt"))
        assert (listed.published, listed.ledger["reused"]) == (False, 24)
        output = f"{bucket}/out/tar"
        files = {name: (photos / name).read_bytes() for name in names}
        filesystem.write_bytes(f"{bucket}/in/tars/x.tar", tar_of(files))
        of_tar = settings(f"{bucket}/in/tars", output)
        assert imgindex.build(of_tar)["ledger"]["embedded"] == 24
        assert imgindex.refresh(of_tar).published is False
        index = imgindex.Index.open(output)
        uri = f"x.tar/{names[5]}"
        (result,) = index.search(index.image_path(uri), k=1)
        assert result.neighbors[0].uri == uri

    def test_what_looks_like_a_glob_and_exists_is_no_glob(self, bucket: str, local: Path) -> None:
        photos = sorted((local / "photos").glob("*/*.jpg"))[:4]
        files = {f"{number}.jpg": photo.read_bytes() for number, photo in enumerate(photos)}
        place = f"{bucket}/in/photos [2020]"
        for name, data in files.items():
            filesystem.write_bytes(f"{place}/{name}", data)
        filesystem.write_bytes(f"{place}/shard[1].tar", tar_of(files))
        filesystem.write_bytes(f"{bucket}/in/photos 2/0.jpg", b"what the glob would match")

        def uris(source: str) -> set[str]:
            return {image.uri for image in list_images(source, Selection((".jpg",)))}

        in_tar = {f"shard[1].tar/{name}" for name in files}
        assert uris(place) == uris(f"{place}/") == files.keys() | in_tar
        assert uris(f"{place}/shard[1].tar") == in_tar
        assert uris(f"{place}/[01].jpg") == {"0.jpg", "1.jpg"}
        assert imgindex.build(settings(place, f"{bucket}/out/literal"))["ledger"]["indexed"] == 8

    def test_objects_with_content_encoding_are_the_images(self, bucket: str, local: Path) -> None:
        for number, photo in enumerate(sorted((local / "photos").glob("*/*.jpg"))[:6]):
            path = f"{bucket}/in/packed/{number}.jpg"
            if number % 2:
                filesystem.write_bytes(path, photo.read_bytes())
            else:
                self.put_packed(path, gzip.compress(photo.read_bytes()))
        self.put_packed(f"{bucket}/in/packed.csv", gzip.compress(b"path\npacked/0.jpg\npacked/1.jpg\n"))
        config = settings(f"{bucket}/in/packed", f"{bucket}/out/packed")
        manifest = imgindex.build(config)
        assert (manifest["ledger"]["indexed"], manifest["ledger"]["failed"]) == (6, 0)
        assert imgindex.refresh(config).published is False
        (result,) = imgindex.Index.open(config.output).search(f"{bucket}/in/packed/0.jpg", k=1)
        assert (result.neighbors[0].uri, result.neighbors[0].similarity) == ("0.jpg", pytest.approx(1))
        listed = {image.uri for image in list_images(f"{bucket}/in/packed.csv", Selection((".jpg",)))}
        assert listed == {"packed/0.jpg", "packed/1.jpg"}

    def put_packed(self, path: str, data: bytes) -> None:
        """Writes an object with ``Content-Encoding: gzip``."""
        raise NotImplementedError

    @pytest.mark.timeout(600 + 60 * PAIRS)
    def test_of_two_builds_that_start_together_one_publishes_and_nothing_is_lost(
        self, bucket: str, tmp_path: Path
    ) -> None:
        seed = random.randrange(2**32)
        sys.stdout.write(f"seed {seed}, {PAIRS} pairs\n")  # shown where the test fails
        chance, ends = random.Random(seed), Counter[str]()
        write_photos(tmp_path / "photos")
        with contextlib.ExitStack() as stack:
            builders = [stack.enter_context(Builder()) for _ in range(2)]
            live = output = None
            for number in range(PAIRS):
                if number % 10 == 0:
                    live, output = None, f"{bucket}/pairs/{number}"
                Image.effect_noise((48, 40), number).save(tmp_path / "photos" / f"{number}.png")
                longest = chance.choice([0.0, 0.02, 0.1])
                for builder in builders:
                    builder.start(tmp_path / "photos", output, chance.random(), longest)
                ended = [builder.end() for builder in builders]
                manifest = imgindex.Index.open(output).manifest
                ends.update(how_it_ended(*one) for one in ended)
                assert (manifest["previous"], manifest["ledger"]["indexed"]) == (live, 25 + number)
                live = manifest["generation"]
                assert verify.verify(output).problems == ()
        sys.stdout.write(f"{dict(ends)}\n")
        assert ends["published"] == PAIRS

    def test_a_second_writer_is_refused_and_a_dead_one_forgotten(
        self, bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(output_lock, "LEASE_SECONDS", 6.0)
        output = f"{bucket}/out/locked"
        with (
            writer_lock(output),
            pytest.raises(OutputError, match=rf"locked is being written by process {os.getpid()}"),
            writer_lock(output),
        ):
            pass
        with writer_lock(output):
            pass
        dead = {"owner": "x", "host": "elsewhere", "pid": 1, "since": 1.0, "renewed": time.time() + 1000}
        filesystem.write_bytes(f"{output}/.lock", json.dumps(dead).encode())
        with writer_lock(output) as claim:
            claim.check()

    def test_a_file_is_replaced_only_in_the_version_that_was_read(self, bucket: str) -> None:
        path = f"{bucket}/out/versions/CURRENT"
        assert filesystem.read_versioned(path) is None
        assert filesystem.replace_version(path, b"never", "1" if bucket.startswith("gs") else '"abc"') is None
        first = filesystem.replace_version(path, b"first", None)
        assert filesystem.replace_version(path, b"second", None) is None
        assert filesystem.read_versioned(path) == (b"first", first)
        second = filesystem.replace_version(path, b"second", first)
        assert filesystem.replace_version(path, b"third", first) is None
        assert filesystem.read_versioned(path) == (b"second", second)
        # As a second attempt after the answer to the first was lost.
        assert filesystem.replace_version(path, b"second", first) == second

    def test_a_lease_is_renewed(self, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(output_lock, "LEASE_SECONDS", 12.0)
        path = f"{bucket}/out/renewed/.lock"
        with writer_lock(f"{bucket}/out/renewed"):
            renewals = {json.loads(filesystem.read_bytes(path))["renewed"]}
            for _ in range(200):
                renewals.add(json.loads(filesystem.read_bytes(path))["renewed"])
                if len(renewals) > 1:
                    break
                time.sleep(0.1)
        assert len(renewals) > 1

    def test_a_listing_of_several_pages_is_cut(self, bucket: str) -> None:
        names = [f"{number % 7}/ä {number:05}" for number in range(1100)]
        place = f"{bucket}/many/"
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: filesystem.write_bytes(place + name, b""), names))
        assert [found.path.removeprefix(place) for found in filesystem.each_object(place)] == sorted(names)
        parts = cut(KeyRange(place), 20)
        assert len(parts) >= 7
        listed = [found.path.removeprefix(place) for part in parts for found in objects_of(part)]
        assert sorted(listed) == sorted(names)
        assert filesystem.list_folders(place) == [str(number) for number in range(7)]
        filesystem.delete_tree(place)
        assert list(filesystem.each_object(place)) == []

    def test_files_of_any_size(self, bucket: str) -> None:
        for size in (0, 1, 9 << 20):  # the last in parts
            path, data = f"{bucket}/sizes/{size}", np.random.default_rng(size).bytes(size)
            filesystem.write_bytes(path, data)
            assert hashlib.sha256(filesystem.read_bytes(path)).digest() == hashlib.sha256(data).digest()
            assert filesystem.read_regular(path, 10) == data[:11]
            assert filesystem.find(path).size == size
            with reader(path) as file:
                file.seek(max(0, size - 5))
                assert file.read() == data[-5:]
                file.seek(0)
                assert file.read(7) == data[:7]

    def test_a_version_tells_what_was_written_within_a_second(self, bucket: str) -> None:
        path = f"{bucket}/versions/image.jpg"
        versions = set()
        for content in (b"one", b"two", b"six"):
            filesystem.write_bytes(path, content)
            found = filesystem.find(path)
            # A listing says the same as a look at the object alone.
            assert filesystem.page(f"{bucket}/versions/").found == [found]
            versions.add(found.version)
        assert len(versions) == 3

    def test_what_is_not_there(self, bucket: str) -> None:
        with pytest.raises(FileNotFoundError):
            filesystem.read_bytes(f"{bucket}/nothing")
        with pytest.raises(FileNotFoundError):
            filesystem.find(f"{bucket}/nothing")
        assert not filesystem.exists(f"{bucket}/nothing")
        assert filesystem.list_folders(f"{bucket}/nothing") == []
        assert main(["build", "--input", f"{bucket}/nothing", "--output", f"{bucket}/out/nothing"]) == 3
        assert main(["build", "--input", f"{bucket}-2/nothing", "--output", f"{bucket}/out/nothing"]) == 3
        assert main(["search", f"{bucket}/nothing", "a.jpg"]) == 3
