"""`imgindex serve` under load.

    load    vector queries against bare Annoy in threads, image queries against the engine alone: queries a
            second, and how long requests take. Ends with 1 where a bar of the project is missed.
    mixed   images, uris, vectors, items and thumbnails side by side, while generations are published and
            pruned: every answer must be of one generation, and the service's memory flat.

Clients are threads of a process of their own, on the same cores as the service.
"""

import argparse
import json
import multiprocessing
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from annoy import AnnoyIndex
from measure import machine

import imgindex
from imgindex.config import BackboneConfig, Config, IndexConfig, PublishConfig
from imgindex.generations.layout import Output, current_name, publish, read_manifest
from imgindex.generations.manifest import MeasuredRecall, Shard
from imgindex.indexing.shards import write_shard
from imgindex.indexing.vector_files import VectorRows
from imgindex.io import written_files
from imgindex.job.description import tune
from imgindex.models.moments import Moments
from imgindex.models.pca import fit_basis, normalize
from imgindex.runtime.resources import available_cores
from imgindex.search.query_engine import query_engine

VECTORS_BAR, IMAGES_BAR = 0.6, 0.8
MEMORY_MIB = 48.0
DIMS, TREES, RECALL = 150, 40, 0.95
Vectors = npt.NDArray[np.float32]


class Client:
    """A connection that is kept, for requests that are written out beforehand."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request: bytes) -> tuple[int, bytes]:
        """The status and the body of the answer."""
        self._socket.sendall(request)
        answer = b""
        while (head := answer.find(b"\r\n\r\n")) < 0:
            answer += self._received()
        length = re.search(rb"\r\ncontent-length: (\d+)", answer[:head], re.IGNORECASE)
        parts, left = [answer[head + 4 :]], int(length[1]) if length else 0
        left -= len(parts[0])
        while left > 0:
            parts.append(self._received())
            left -= len(parts[-1])
        return int(answer[9:12]), b"".join(parts)

    def _received(self) -> bytes:
        data = self._socket.recv(1 << 18)
        if not data:
            raise ConnectionError("the service has closed the connection")
        return data


def request(method: str, target: str, body: bytes = b"", kind: str = "") -> bytes:
    """A request of HTTP/1.1."""
    lines = [f"{method} {target} HTTP/1.1", "host: 127.0.0.1"]
    if body:
        lines += [f"content-type: {kind}", f"content-length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def vectors_request(vectors: Vectors) -> bytes:
    """A search by vectors."""
    body = json.dumps({"vectors": vectors.tolist()}).encode()
    return request("POST", "/search?k=10", body, "application/json")


def image_request(photo: Path) -> bytes:
    """A search by a photo."""
    head = b'--b\r\ncontent-disposition: form-data; name="image"; filename="x.jpg"\r\n\r\n'
    body = head + photo.read_bytes() + b"\r\n--b--\r\n"
    return request("POST", "/search?k=10", body, "multipart/form-data; boundary=b")


def drive(
    port: int, requests: Sequence[bytes], clients: int, seconds: float
) -> tuple[list[float], int, float]:
    """How long each request of `clients` took, how many failed, and the seconds that all took."""
    latencies: list[list[float]] = [[] for _ in range(clients)]
    failed = [0] * clients
    started = time.monotonic()

    def ask(number: int) -> None:
        client, turn = Client(port), number
        while (begun := time.monotonic()) < started + seconds:
            status, _ = client.ask(requests[turn % len(requests)])
            latencies[number].append(time.monotonic() - begun)
            failed[number] += status != 200
            turn += clients

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, range(clients)))
    return [each for some in latencies for each in some], sum(failed), time.monotonic() - started


@contextmanager
def serving(output: Path) -> Iterator[tuple[int, int]]:
    """The port and the process of a service."""
    command = [sys.executable, "-m", "imgindex", "serve", str(output), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        told = "".join(islice(process.stdout or (), 2))
        address = re.search(r":(\d+)/", told)
        if not address:
            sys.exit(f"the service did not start: {told}")
        try:
            yield int(address[1]), process.pid
        finally:
            process.terminate()


def config_of(photos: Path, output: Path, known: argparse.Namespace) -> Config:
    """How the photos are indexed."""
    return Config(
        input=str(photos),
        output=str(output),
        backbone=BackboneConfig(name=known.backbone, weights=known.weights),
        publish=PublishConfig(min_recall=0),
    )


def synthetic(rows: int) -> Vectors:
    """Vectors [rows, DIMS] around 200 centers, of falling variance, as after PCA."""
    random = np.random.default_rng(0)
    centers = random.normal(size=(200, DIMS))
    vectors = centers[random.integers(0, 200, rows)] + 0.7 * random.normal(size=(rows, DIMS))
    return normalize((vectors * (np.arange(DIMS) + 1.0) ** -0.5).astype(np.float32))[0]


def publish_synthetic(output: Path, rows: int) -> None:
    """Publishes a generation of synthetic vectors, after one of photos and with its engine."""
    layout = Output(str(output))
    photos = read_manifest(layout)
    name = f"29990101T000000Z-{rows:08x}"
    numbers = np.arange(rows)
    images = pa.table(
        {
            "uri": [f"{n % 997:03}/{n:09}.jpg" for n in range(rows)],
            "sha256": [f"{n:064x}" for n in range(rows)],
            "size": numbers + 1,
            "width": np.full(rows, 300),
            "height": np.full(rows, 200),
        }
    )
    config = IndexConfig(trees=TREES)
    shard = write_shard(layout.generation(name), 0, 1, [VectorRows(images, synthetic(rows))], config)
    moments = Moments.empty(photos.feature_dim)
    moments.add(normalize(np.random.default_rng(0).random((400, photos.feature_dim), np.float32))[0])
    basis = written_files.write_described(
        layout.generation(name), "pca/basis.npz", fit_basis(moments, DIMS).to_npz()
    )
    tuned = tune([shard], RECALL)
    print(f"{rows} synthetic vectors: search_k {tuned.search_k}, recall {tuned.recall:.3f}", flush=True)
    publish(
        layout,
        replace(
            photos,
            generation=name,
            previous=current_name(layout),
            dims=DIMS,
            search_k=tuned.search_k,
            recall=MeasuredRecall(10, tuned.recall),
            shards=(Shard(shard.index.path, shard.metadata.path, shard.items, TREES),),
            basis=basis.path,
            failures=(),
            files=(shard.index, shard.metadata, basis),
            report=None,
        ),
    )


def annoy_rate(output: Path, queries: Sequence[list[float]], seconds: float) -> float:
    """Queries a second of bare Annoy, in as many threads as there are cores."""
    manifest = read_manifest(Output(str(output)))
    index = AnnoyIndex(manifest.dims, manifest.metric)
    index.load(str(output / "generations" / manifest.generation / manifest.shards[0].index))
    ended = time.monotonic() + seconds

    def ask(first: int) -> int:
        turn = first
        while time.monotonic() < ended:
            query = queries[turn % len(queries)]
            index.get_nns_by_vector(query, 10, search_k=manifest.search_k, include_distances=True)
            turn += 1
        return turn - first

    with ThreadPoolExecutor(available_cores()) as pool:
        return sum(pool.map(ask, range(available_cores()))) / seconds


def told(kind: str, found: tuple[list[float], int, float], queries: int) -> float:
    """Prints what a load took; queries a second."""
    latencies, failed, seconds = found
    rate = queries * len(latencies) / seconds
    percentiles = ", ".join(f"p{p} {1000 * np.percentile(latencies, p):.1f}" for p in (50, 95, 99))
    print(f"  {kind}: {rate:.0f} queries/s; ms a request: {percentiles}; {failed} failed", flush=True)
    return 0.0 if failed else rate


def load_vectors(output: Path, seconds: float) -> float:
    """Queries a second by vectors, as a share of bare Annoy's; the best of all sizes of requests."""
    manifest = read_manifest(Output(str(output)))
    shard = AnnoyIndex(manifest.dims, manifest.metric)
    shard.load(str(output / "generations" / manifest.generation / manifest.shards[0].index))
    chosen = np.linspace(0, manifest.items - 1, min(512, manifest.items)).astype(int)
    queries = np.array([shard.get_item_vector(int(item)) for item in chosen], np.float32)
    lists = queries.tolist()
    best = 0.0
    with serving(output) as (port, _), clients_process() as clients:
        for count in (1, 16, 64, 256):
            requests = [vectors_request(queries[n : n + count]) for n in range(0, len(queries), count)]
            before = annoy_rate(output, lists, seconds / 2)
            found = clients.submit(drive, port, requests, 8, seconds).result()
            after = annoy_rate(output, lists, seconds / 2)
            rate = told(f"{count} vectors a request, 8 clients", found, count)
            ratio = rate / ((before + after) / 2)
            print(f"    bare Annoy {before:.0f} and {after:.0f} a second: {ratio:.2f} x", flush=True)
            best = max(best, ratio)
    return best


def load_images(output: Path, photos: Sequence[Path], seconds: float) -> float:
    """Queries a second by images of 16 clients, as a share of the images that the engine alone embeds."""
    engine = query_engine(str(output), read_manifest(Output(str(output))))
    batch = np.random.default_rng(0).integers(0, 256, (engine.batch_size, *engine.image_size, 3), np.uint8)
    engine.embed(batch)

    def alone() -> float:
        ended = time.monotonic() + seconds / 2

        def embed(_: int) -> tuple[int, float]:
            count = 0
            while time.monotonic() < ended:
                engine.embed(batch)
                count += len(batch)
            return count, time.monotonic()

        started = time.monotonic()
        with ThreadPoolExecutor(engine.streams) as pool:
            done = list(pool.map(embed, range(engine.streams)))
        return sum(count for count, _ in done) / (max(end for _, end in done) - started)

    requests = [image_request(photo) for photo in photos]
    ratio = 0.0
    with serving(output) as (port, _), clients_process() as clients:
        for count in (1, 16):
            before = alone()
            found = clients.submit(drive, port, requests, count, seconds).result()
            after = alone()
            rate = told(f"images, {count} clients", found, 1)
            ratio = rate / ((before + after) / 2)
            print(f"    engine alone {before:.1f} and {after:.1f} a second: {ratio:.2f} x", flush=True)
    return ratio


def clients_process() -> ProcessPoolExecutor:
    """A process for clients, which shares no lock with what is measured beside it."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def load(known: argparse.Namespace, photos: Sequence[Path], folder: Path) -> bool:
    """Measures queries of each kind; whether the bars are kept."""
    output = folder / "index"
    imgindex.build(config_of(known.photos, output, known))
    print(f"{len(photos)} photos, {known.backbone}", flush=True)
    images = load_images(output, photos[:200], known.seconds)
    load_vectors(output, known.seconds)
    vectors = 0.0
    for rows in known.vectors:
        publish_synthetic(output, rows)
        vectors = load_vectors(output, known.seconds)
    return images >= IMAGES_BAR and vectors >= VECTORS_BAR


# The kinds of requests of `mixed`, and the number of clients that send each.
MIXTURE = {"image": 2, "vectors": 2, "uri": 2, "items": 1, "thumbnails": 1}


def ask_mixed(port: int, photos: Sequence[Path], uris: Sequence[str], seconds: float) -> dict[str, Any]:
    """Asks for everything for so long: the answers by kind and status, and uris by generation.

    `uris` are in all generations.
    """
    by_uri = [request("POST", f"/search?uri={uri}") for uri in uris]
    asked = {
        "image": [image_request(photo) for photo in photos],
        "uri": by_uri,
        "items": [request("GET", f"/items/{uri}") for uri in uris],
        "thumbnails": [request("GET", f"/thumbnails/{uri}") for uri in uris],
    }
    statuses: Counter[str] = Counter()
    answered: dict[str, set[str]] = {}
    lock = threading.Lock()
    ended = time.monotonic() + seconds
    dims = json.loads(Client(port).ask(request("GET", "/info"))[1])["dims"]
    some = np.random.default_rng(0).normal(size=(64, dims)).astype(np.float32)
    asked["vectors"] = [vectors_request(some[n : n + 16]) for n in range(0, 64, 16)]

    def ask(kind: str) -> None:
        client, turn = Client(port), 0
        while time.monotonic() < ended:
            status, body = client.ask(asked[kind][turn % len(asked[kind])])
            turn += 1
            with lock:
                statuses[f"{kind} {status}"] += 1
                if status == 200 and kind != "thumbnails":
                    content = json.loads(body)
                    neighbors = [
                        each
                        for result in content.get("results", [content])
                        for each in result.get("neighbors", [result])
                    ]
                    found = answered.setdefault(content["generation"], set())
                    found.update(f"{each['uri']} {each['sha256']}" for each in neighbors)

    kinds = [kind for kind, count in MIXTURE.items() for _ in range(count)]
    with ThreadPoolExecutor(len(kinds)) as pool:
        list(pool.map(ask, kinds))
    return {"statuses": statuses, "answered": answered}


def images_of(output: Path) -> tuple[str, set[str]]:
    """The live generation, and the uris with the SHA-256 of its images."""
    manifest = read_manifest(Output(str(output)))
    found: set[str] = set()
    for shard in manifest.shards:
        table = pq.read_table(output / "generations" / manifest.generation / shard.metadata)
        found.update(f"{row['uri']} {row['sha256']}" for row in table.select(["uri", "sha256"]).to_pylist())
    return manifest.generation, found


def anonymous_mib(pid: int) -> float:
    """The memory of a process that is no mapped file."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def mixed(known: argparse.Namespace, photos: Sequence[Path], folder: Path) -> bool:
    """Publishes while everything is asked for; whether no answer was wrong."""
    inputs, output = folder / "photos", folder / "index"
    shutil.copytree(known.photos, inputs)
    names = [str(photo.relative_to(known.photos)) for photo in photos]
    changing, fixed = names[: len(names) // 2], names[len(names) // 2 :]
    imgindex.build(config_of(inputs, output, known))
    generations = dict([images_of(output)])
    held: list[float] = []
    with serving(output) as (port, pid), clients_process() as clients:
        started = time.monotonic()
        asking = clients.submit(ask_mixed, port, photos[:100], fixed[:100], known.seconds)
        for turn in range(known.publishes):
            time.sleep(
                max(0.0, started + (turn + 0.5) * known.seconds / (known.publishes + 1) - time.monotonic())
            )
            # Two photos change places, so that names and contents of generations differ.
            one, other = (inputs / changing[(2 * turn + n) % len(changing)] for n in (0, 1))
            first = one.read_bytes()
            one.write_bytes(other.read_bytes())
            other.write_bytes(first)
            imgindex.build(config_of(inputs, output, known))
            name, images = images_of(output)
            generations[name] = images
            if turn == known.publishes // 2:
                prune = ["prune", str(output), "--keep", "1", "--grace", "1s"]
                subprocess.run(
                    [sys.executable, "-m", "imgindex", *prune], check=True, stdout=subprocess.DEVNULL
                )
            held.append(anonymous_mib(pid))
            print(
                f"  {time.monotonic() - started:5.0f} s: generation {turn + 1} is live; the service holds "
                f"{held[-1]:.0f} MiB",
                flush=True,
            )
        answers = asking.result()
        held.append(anonymous_mib(pid))
        print(f"  at the end {held[-1]:.0f} MiB")
    wrong = {kind: n for kind, n in answers["statuses"].items() if not kind.endswith(" 200")}
    strange = {
        name: len(found - generations.get(name, set()))
        for name, found in answers["answered"].items()
        if found - generations.get(name, set())
    }
    print(f"  answers: {dict(sorted(answers['statuses'].items()))}")
    print(f"  {len(answers['answered'])} generations answered; images of another one: {strange or 'none'}")
    is_flat = max(held) <= held[0] + MEMORY_MIB
    return is_flat and not wrong and not strange and len(answers["answered"]) > known.publishes // 2


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("load", "mixed"))
    parser.add_argument("photos", type=Path)
    parser.add_argument("--backbone", default="ResNet50")
    parser.add_argument("--weights", default="none")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load, or of all the mixture")
    parser.add_argument("--vectors", type=int, nargs="*", default=[100_000], help="in synthetic indexes")
    parser.add_argument("--publishes", type=int, default=10)
    known = parser.parse_args()
    photos = sorted(path for path in known.photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory(prefix="imgindex-serve-") as folder:
        kept = {"load": load, "mixed": mixed}[known.what](known, photos, Path(folder))
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
