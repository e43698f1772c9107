"""How fast `imgindex push` fills databases, what they find then, and how much memory a push takes.

Milvus Lite, PostgreSQL with pgvector (started here), and the local mode of Qdrant's client in memory: with a
folder it writes some 25 points a second. Ends with 1 where a bar of the project is missed.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from milvus_target import MilvusTarget
from postgres_target import PostgresTarget, postgres_server
from vector_outputs import publish_vectors

import imgindex
from imgindex.generations.layout import Output, read_manifest
from imgindex.models.similarity import exact_nearest
from imgindex.runtime.progress import Progress
from imgindex.sinks.databases import sink, targets
from imgindex.sinks.source import opened

GENERATION = "20260101T000000Z-00000001"
RATE, RECALL = 0.8, 0.9
MEMORY_MIB = 48.0
Vectors = npt.NDArray[np.float32]


def synthetic(rows: int, dims: int, seed: int = 0) -> Vectors:
    """Vectors [rows, dims] around 200 centers, of falling variance, as after PCA."""
    random = np.random.default_rng(seed)
    scales = (np.arange(dims) + 1.0) ** -0.5
    centers = np.random.default_rng(1).normal(size=(200, dims))
    vectors = centers[random.integers(0, 200, rows)] + 0.7 * random.normal(size=(rows, dims))
    return (vectors * scales).astype(np.float32)


def publish(output: str, rows: int, dims: int) -> None:
    """An index of synthetic vectors, in ten shards."""
    uris = [f"{n % 100:02}/{n:08}.jpg" for n in range(rows)]
    publish_vectors(output, GENERATION, uris, synthetic(rows, dims), shards=10)


class QdrantTarget:
    """Qdrant's local mode in memory, seen by its client."""

    to, uri = "qdrant", "memory"

    def __init__(self) -> None:
        from qdrant_client import QdrantClient

        from imgindex.sinks.databases import qdrant

        self.client = QdrantClient(":memory:")

        class InMemory(qdrant.Qdrant):
            def close(self) -> None:
                """It is to outlive the push."""

        qdrant.connect = lambda uri, make: InMemory(uri, self.client)

    def nearest(self, name: str, vector: Vectors, k: int, metric: str) -> list[str]:
        """The uris of the nearest."""
        found = self.client.query_points(name, query=vector.tolist(), limit=k).points
        return [point.payload["uri"] for point in found]


@contextlib.contextmanager
def database(to: str) -> Iterator[Any]:
    """One of the targets, empty."""
    with tempfile.TemporaryDirectory(prefix="imgindex-push-") as folder:
        if to == "milvus":
            target = MilvusTarget(f"{folder}/milvus.db")
            yield target
            target.client.close()
        elif to == "pgvector":
            with postgres_server() as server:
                yield PostgresTarget(server.get_uri())
        else:
            yield QdrantTarget()


def count_of(target: Any, name: str) -> int:
    """How many rows there are, by the database's own client."""
    if target.to == "milvus":
        return int(target.client.query(name, output_fields=["count(*)"])[0]["count(*)"])
    if target.to == "pgvector":
        return int(target.connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0])
    return int(target.client.count(name).count)


def plain_loop(target: Any, batches: list[tuple[list[dict[str, Any]], Vectors]], dims: int) -> float:
    """Seconds that a loop over the client takes, which inserts rows that lie in memory."""
    if target.to == "milvus":
        from pymilvus import DataType, MilvusClient

        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("uri", DataType.VARCHAR, is_primary=True, max_length=65_535)
        schema.add_field("label", DataType.VARCHAR, max_length=65_535, nullable=True)
        schema.add_field("sha256", DataType.VARCHAR, max_length=64)
        schema.add_field("width", DataType.INT32)
        schema.add_field("height", DataType.INT32)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dims)
        target.client.create_collection("plain", schema=schema)
        started = time.monotonic()
        for rows, vectors in batches:
            target.client.insert(
                "plain", [{**row, "vector": v} for row, v in zip(rows, vectors, strict=True)]
            )
        seconds = time.monotonic() - started
        target.client.drop_collection("plain")
        return seconds
    if target.to == "pgvector":
        from pgvector.psycopg import register_vector

        connection = target.connection
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        register_vector(connection)
        connection.execute(
            "CREATE TABLE plain (uri text PRIMARY KEY, label text, sha256 text NOT NULL, "
            f"width integer NOT NULL, height integer NOT NULL, vector vector({dims}) NOT NULL)"
        )
        started = time.monotonic()
        for rows, vectors in batches:
            with (
                connection.cursor() as cursor,
                cursor.copy("COPY plain FROM STDIN (FORMAT BINARY)") as copy,
            ):
                copy.set_types(["text", "text", "text", "int4", "int4", "vector"])
                for row, vector in zip(rows, vectors, strict=True):
                    copy.write_row((*row.values(), vector))
        seconds = time.monotonic() - started
        connection.execute("DROP TABLE plain")
        return seconds
    from uuid import NAMESPACE_URL, uuid5

    from qdrant_client import models

    target.client.create_collection(
        "plain", vectors_config=models.VectorParams(size=dims, distance=models.Distance.COSINE)
    )
    started = time.monotonic()
    for rows, vectors in batches:
        ids = [str(uuid5(NAMESPACE_URL, row["uri"])) for row in rows]
        target.client.upsert(
            "plain", models.Batch(ids=ids, vectors=vectors.tolist(), payloads=rows), wait=True
        )
    seconds = time.monotonic() - started
    target.client.delete_collection("plain")
    return seconds


def batches_of(output: str, batch_rows: int) -> list[tuple[list[dict[str, Any]], Vectors]]:
    """The rows of the live generation, in memory."""
    batches = []
    with opened(output, None, normalize=False, progress=Progress()) as source:
        for batch in source.batches():
            rows = batch.images.select(["uri", "label", "sha256", "width", "height"]).to_pylist()
            for start in range(0, len(rows), batch_rows):
                stop = start + batch_rows
                batches.append((rows[start:stop], batch.vectors[start:stop]))
    return batches


def timed_push(output: str, target: Any, batch_rows: int, **options: Any) -> tuple[float, float]:
    """Seconds of all of a push, and from its first insert to its last, with what it reads between."""
    calls: list[tuple[float, float]] = []
    insert = sink.inserted

    def inserted(*given: Any, **named: Any) -> None:
        started = time.monotonic()
        insert(*given, **named)
        calls.append((started, time.monotonic()))

    sink.inserted = inserted
    started = time.monotonic()
    try:
        imgindex.push(output, target.to, target.uri, collection="photos", batch_rows=batch_rows, **options)
    finally:
        sink.inserted = insert
    return time.monotonic() - started, calls[-1][1] - calls[0][0]


def recall_of(target: Any, output: str, queries: Vectors) -> float:
    """Recall@10 of searches by the database's own client, against exact search; ties count."""
    with opened(output, None, normalize=False, progress=Progress()) as source:
        parts = list(source.batches())
        vectors = np.concatenate([batch.vectors for batch in parts])
        uris = [uri for batch in parts for uri in batch.images["uri"].to_pylist()]
        metric = source.manifest.metric
    exact = exact_nearest(vectors, queries, 10, metric)
    hits = 0
    for query, (items, _) in zip(queries, exact, strict=True):
        hits += len({uris[item] for item in items} & set(target.nearest("photos", query, 10, metric)))
    return hits / sum(len(items) for items, _ in exact)


def measure(name: str, output: str, to: str, batch_rows: int, queries: Callable[[int], Vectors]) -> bool:
    """Fills one database, and prints how; whether all bars are kept."""
    manifest = read_manifest(Output(output))
    with database(to) as target:
        rows = batches_of(output, batch_rows)
        loops = [plain_loop(target, rows, manifest.dims)]
        seconds, inserting = timed_push(output, target, batch_rows)
        loops.append(plain_loop(target, rows, manifest.dims))
        held = count_of(target, "photos")
        if target.to == "pgvector":
            target.connection.execute("SET hnsw.ef_search = 256")
        recall = recall_of(target, output, queries(manifest.dims))
    ratio = float(np.mean(loops)) / inserting
    print(
        f"{name} into {to}: {held} rows in {seconds:.1f} s; inserting {held / inserting:.0f} rows/s, a plain "
        f"loop {held / loops[0]:.0f} and {held / loops[1]:.0f}: {ratio:.2f} x; recall@10 {recall:.3f}",
        flush=True,
    )
    return held == manifest.items and recall >= RECALL and ratio >= (RATE if held > 10_000 else 0)


# A push in a process of its own, which tells the peak of its anonymous memory: shards are mapped files.
PUSH = """
import sys, threading, time
import imgindex

peak, ended = [0], threading.Event()

def watch():
    while not ended.wait(0.02):
        with open("/proc/self/status") as status:
            peak[0] = max([peak[0], *(int(line.split()[1]) for line in status if line.startswith("RssAnon"))])

threading.Thread(target=watch, daemon=True).start()
imgindex.push(sys.argv[1], sys.argv[2], sys.argv[3], collection="photos", index_kind=sys.argv[4])
ended.set()
print(peak[0] / 1024)
"""


@contextlib.contextmanager
def milvus_server(folder: str) -> Iterator[str]:
    """`milvus-lite server`, so that its memory is not that of the push."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("milvus-lite")), "server", "--data-dir", folder]
    process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL)
    try:
        time.sleep(5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def memory(sizes: list[int], dims: int, to: str) -> bool:
    """Prints the peaks of pushes of few and of many rows; whether they are the same but for `MEMORY_MIB`."""
    peaks = []
    for rows in sizes:
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            publish(f"{folder}/index", rows, dims)
            if to == "pgvector":
                uri = stack.enter_context(postgres_server()).get_uri()
            else:
                uri = stack.enter_context(milvus_server(f"{folder}/milvus"))
            kind = "ivfflat" if to == "pgvector" else "FLAT"  # hnsw would take most of an hour
            command = [sys.executable, "-c", PUSH, f"{folder}/index", to, uri, kind]
            started = time.monotonic()
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            peaks.append(float(done.stdout.split()[-1]))
            seconds = time.monotonic() - started
        print(f"{rows} rows into {to}: {seconds:.0f} s, peak {peaks[-1]:.0f} MiB anonymous", flush=True)
    return peaks[-1] - peaks[0] <= MEMORY_MIB


def main() -> None:
    """Prints what is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["rates", "memory"])
    parser.add_argument("--photos", help="with rates: also an index of the images there")
    parser.add_argument("--rows", type=int, nargs="+", help="default: 100000; with memory 10000 1000000")
    parser.add_argument("--dims", type=int, help="default: 64; with memory 32")
    parser.add_argument("--to", nargs="+", choices=targets.TARGETS, default=list(targets.TARGETS))
    parser.add_argument("--batch_rows", type=int, default=4096)
    given = parser.parse_args()
    kept = []
    if given.what == "memory":
        for to in given.to:
            if to != "qdrant":  # a server of it does not run here
                kept.append(memory(given.rows or [10_000, 1_000_000], given.dims or 32, to))
    else:
        with tempfile.TemporaryDirectory() as folder:
            outputs = []
            if given.photos:
                output = f"{folder}/photos"
                config = imgindex.Config(
                    input=given.photos,
                    output=output,
                    backbone=imgindex.BackboneConfig(name="MobileNetV2", weights="bundled"),
                )
                imgindex.build(config)
                outputs.append(("photos", output))
            for rows in given.rows or [100_000]:
                publish(f"{folder}/{rows}", rows, given.dims or 64)
                outputs.append((f"{rows} vectors", f"{folder}/{rows}"))
            for name, output in outputs:
                for to in given.to:
                    batches = batches_of(output, 4096)
                    of_index = np.concatenate([vectors for _, vectors in batches])[
                        :: 1 if name == "photos" else 500
                    ]
                    kept.append(measure(name, output, to, given.batch_rows, lambda dims, q=of_index: q[:200]))
    print(json.dumps({"kept": kept}))
    sys.exit(0 if all(kept) else 1)


if __name__ == "__main__":
    main()
