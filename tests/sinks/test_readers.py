"""Exports, read by the tools that they are for, in environments of their own: these want older libraries.

See ``make test-integration``. They need a package index.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
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
    home = HOME / f"embedding-reader-{sys.version_info.major}.{sys.version_info.minor}"
    python = home / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    subprocess.run(
        # They pin NumPy below 2, which newer pyarrows refuse.
        [python, "-m", "pip", "install", "--quiet", "embedding-reader", "autofaiss", "pyarrow<20"],
        check=True,
    )

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
