"""Exports, read by the tools that they are for, in environments of their own: these want older libraries.

See ``make test-integration``. They need a package index.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from outputs import publish_features
from PIL import Image
from vector_outputs import publish_vectors

import imgindex

pytestmark = pytest.mark.integration

# Environments, from one run to the next.
HOME = Path(os.environ.get("IMGINDEX_READERS", Path.home() / ".cache" / "imgindex-readers"))
COUNT, DIMS = 3000, 32

Run = Callable[[str, Path], object]


@pytest.fixture(scope="module")
def embedding_reader() -> Run:
    """Runs code on a folder where embedding-reader and autofaiss are, and gives the JSON that it prints."""
    # They pin NumPy below 2, which newer pyarrows refuse.
    return environment("embedding-reader", ["embedding-reader", "autofaiss", "pyarrow<20"])


@pytest.fixture(scope="module")
def embedding_atlas() -> Run:
    """As `embedding_reader`, where Embedding Atlas is, without the models that vectors do not need."""
    needed = "click inquirer pandas pyarrow uvicorn narwhals duckdb fastapi tqdm platformdirs cryptography"
    return environment("embedding-atlas", needed.split(), ["--no-deps", "embedding-atlas"])


def environment(name: str, *installed: Sequence[str]) -> Run:
    """Makes an environment by pip and gives what runs code in it."""
    home = HOME / f"{name}-{sys.version_info.major}.{sys.version_info.minor}"
    python = home / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    for arguments in installed:
        subprocess.run([python, "-m", "pip", "install", "--quiet", *arguments], check=True)

    def run(code: str, folder: Path) -> object:
        done = subprocess.run(
            [python, "-c", code, str(folder)], capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("output"))
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(COUNT, DIMS)).astype(np.float32) * generator.uniform(1, 9, (COUNT, 1))
    uris = [f"{'ab'[n % 2]}/{n:04}.jpg" for n in range(COUNT)]
    publish_vectors(folder, "20260101T000000Z-00000001", uris, vectors.astype(np.float32), shards=3)
    return folder


READ = """
import json, sys
from embedding_reader import EmbeddingReader

reader = EmbeddingReader(
    embeddings_folder=sys.argv[1] + "/img_emb", file_format="parquet_npy",
    metadata_folder=sys.argv[1] + "/metadata", meta_columns=["uri", "label", "width"],
)
rows = {}
for vectors, images in reader(batch_size=700, show_progress=False):
    for vector, uri, label, width in zip(vectors, images["uri"], images["label"], images["width"]):
        rows[uri] = [label, width, vector.tolist()]
print(json.dumps(rows))
"""


def test_embedding_reader_reads_every_row(embedding_reader: Run, output: str, tmp_path: Path) -> None:
    imgindex.export(output, "npy", tmp_path / "out")
    rows = embedding_reader(READ, tmp_path / "out")
    assert isinstance(rows, dict)
    assert len(rows) == COUNT
    index = imgindex.Index.open(output)
    uris = sorted(rows)[::100]
    vectors = np.array([rows[uri][2] for uri in uris], np.float32)
    for uri, result in zip(uris, index.search_vectors(vectors, 1, exact=True), strict=True):
        assert rows[uri][:2] == [uri[0], 5]
        assert (result.neighbors[0].uri, result.neighbors[0].distance) == (uri, 0)


SEARCH = """
import json, sys
import numpy as np
import pandas as pd
from autofaiss import build_index

folder = sys.argv[1]
index, _ = build_index(
    folder + "/img_emb", index_path=folder + "/knn.index", index_infos_path=folder + "/infos.json",
    metric_type="ip", index_key="Flat", save_on_disk=True, verbose=30,
)
uris = pd.concat([pd.read_parquet(folder + f"/metadata/metadata_000{n}.parquet") for n in range(3)])["uri"]
queries = np.load(folder + "/img_emb/img_emb_0001.npy")[:50]
found = index.search(queries, 10)[1]
print(json.dumps([queries.tolist(), [[uris.iloc[n] for n in row] for row in found]]))
"""


def test_an_index_by_autofaiss_has_the_neighbors_of_ours(
    embedding_reader: Run, output: str, tmp_path: Path
) -> None:
    """Inner products of normalized vectors are cosines, by which an angular index ranks."""
    imgindex.export(output, "npy", tmp_path / "out", normalize=True)
    answer = embedding_reader(SEARCH, tmp_path / "out")
    assert isinstance(answer, list)
    queries, theirs = answer
    ours = imgindex.Index.open(output).search_vectors(queries, 10, exact=True)
    assert theirs == [[neighbor.uri for neighbor in result.neighbors] for result in ours]


# As its command line reads a file for its server, and what it then gives to browsers.
ATLAS = """
import json, sys
import duckdb
from click.testing import CliRunner
from embedding_atlas.cli import main

folder = sys.argv[1]
done = CliRunner().invoke(main, [
    folder + "/images.parquet", "--x", "x", "--y", "y", "--neighbors", "neighbors",
    "--image", "thumbnail", "--pagerank", "size", "--export-application", folder + "/page",
], catch_exceptions=False)
assert done.exit_code == 0, done.output
data = json.load(open(folder + "/page/data/metadata.json"))["props"]["data"]
columns = [data["id"], data["projection"]["x"], data["projection"]["y"], data["neighbors"], data["image"]]
names = ", ".join(f'"{name}"' for name in columns)
rows = duckdb.sql(f"SELECT uri, label, {names} FROM '{folder}/page/data/dataset.parquet'").fetchall()
print(json.dumps([[*row[:-1], row[-1] and row[-1]["bytes"][:3].hex()] for row in rows]))
"""


def test_embedding_atlas_reads_places_neighbors_and_thumbnails(embedding_atlas: Run, tmp_path: Path) -> None:
    pytest.importorskip("umap")
    generator = np.random.default_rng(0)
    label = np.arange(90) // 30
    features = np.abs(generator.normal(size=(3, 16))[label] * 5 + generator.normal(size=(90, 16)))
    uris = [f"{'abc'[n // 30]}/{n:02}.png" for n in range(90)]
    digests = []
    for n, uri in enumerate(uris):
        path = tmp_path / "photos" / uri
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (2 * n, 0, 0)).save(path)
        digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
    root = str(tmp_path / "photos")
    publish_features(tmp_path / "index", features.astype(np.float32), uris, digests, root=root)
    for name in ("out", "again"):
        imgindex.export(tmp_path / "index", "atlas", tmp_path / name)
    files = [(tmp_path / name / "images.parquet").read_bytes() for name in ("out", "again")]
    assert files[0] == files[1]
    rows = embedding_atlas(ATLAS, tmp_path / "out")
    assert isinstance(rows, list)
    assert sorted(row[0] for row in rows) == sorted(uris)
    places = np.array([row[3:5] for row in rows])
    labels = np.array([row[1] for row in rows])
    for number, (uri, _, row_id, x, y, neighbors, jpeg) in enumerate(rows):
        assert (row_id, neighbors["ids"][0], neighbors["distances"][0], jpeg) == (number, number, 0, "ffd8ff")
        # The labels are well apart, and so they are on the map.
        near = np.argsort(np.linalg.norm(places - [x, y], axis=1))[:15]
        assert (labels[near] == uri[0]).mean() > 0.9
        assert (labels[neighbors["ids"]] == uri[0]).mean() > 0.9
