"""A Parquet file for Embedding Atlas: a map of the images by UMAP, their neighbors and thumbnails."""

import io
import warnings
from dataclasses import asdict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from imgindex.models.ann.euclidean import points
from imgindex.models.frameworks import settled_keras
from imgindex.sinks.folder import NewFiles
from imgindex.sinks.options import ExportOptions
from imgindex.sinks.sample import Sample
from imgindex.sinks.source import IMAGES, Source
from imgindex.sinks.thumbnails import Picture, thumbnails

with settled_keras():  # UMAP loads Keras and TensorFlow if they are there, which have much to say then
    import umap

Float32 = npt.NDArray[np.float32]
Items = npt.NDArray[np.int64]

# Rows that are nearest to each image, itself among them, as many as UMAP and Embedding Atlas take by default.
_NEIGHBORS = 15
# The longer side of a thumbnail, in pixels.
_SIDE = 160
# Images that UMAP makes no map of.
_TOO_FEW = 3
# Rows that are encoded at once.
_ROWS = 1024

_SCHEMA = pa.schema(
    {
        "x": pa.float32(),
        "y": pa.float32(),
        "neighbors": pa.struct({"ids": pa.list_(pa.int64()), "distances": pa.list_(pa.float32())}),
        **{field.name: field.type for field in IMAGES},
        "thumbnail": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
    }
)


def write(files: NewFiles, source: Source, options: ExportOptions) -> None:
    """Writes ``images.parquet``, a row for each of at most `options.images`, which `options.seed` draws.

    `x` and `y` are the place on the map. `neighbors` has the numbers of the rows that are nearest among those
    exported, each image's own first, and their distances. `thumbnail` has a JPEG, or is null for an image
    that cannot be read. The other columns are those of `IMAGES`.

    The vectors are in memory. Raises UsageError for an option out of range.
    """
    sample = Sample.asked_for(options, source)
    tables, parts = zip(*sample.rows(source), strict=True)
    images, vectors = pa.concat_tables(tables), points(np.concatenate(parts), source.manifest.metric)
    items, distances = _nearest(vectors)
    places = _placed(vectors, items, distances, sample.seed)
    pictures = map(_encoded, thumbnails(source.manifest, images, _SIDE))
    with files.open("images.parquet") as file, pq.ParquetWriter(file, _SCHEMA) as rows:
        for start in range(0, len(images), _ROWS):
            part = images.slice(start, _ROWS)
            end = start + len(part)
            columns = {
                "x": places[start:end, 0],
                "y": places[start:end, 1],
                "neighbors": [
                    {"ids": each, "distances": lengths}
                    for each, lengths in zip(items[start:end], distances[start:end], strict=True)
                ],
                **{name: part[name] for name in IMAGES.names},
                "thumbnail": [next(pictures) for _ in range(len(part))],
            }
            rows.write_table(pa.table(columns, _SCHEMA))
    files.facts |= asdict(sample)


def _nearest(vectors: Float32) -> tuple[Items, Float32]:
    """Each of `vectors` [n, dims] and the rows that are nearest to it, with their distances: [n, k].

    The first of each row is itself. The search is exact.
    """
    itself = np.arange(len(vectors))[:, np.newaxis]
    nothing = np.zeros(itself.shape, np.float32)
    others = min(_NEIGHBORS, len(vectors)) - 1
    if others == 0:
        return itself, nothing
    # Threads would take rows at the same distance in an order of their own.
    with threadpool_limits(1):
        distances, items = NearestNeighbors(n_neighbors=others, algorithm="brute").fit(vectors).kneighbors()
    return np.hstack([itself, items]), np.hstack([nothing, distances.astype(np.float32)])


def _placed(vectors: Float32, items: Items, distances: Float32, seed: int) -> Float32:
    """The place of each of `vectors` [n, dims] on a map, [n, 2], by UMAP of what is nearest to each."""
    # Vectors begin with their first principal components, a usual place to start from.
    start = np.pad(vectors[:, :2], ((0, 0), (0, max(0, 2 - vectors.shape[1]))))
    if len(vectors) <= _TOO_FEW:
        return start
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no new images can be placed on the map later
        made = umap.UMAP(
            n_neighbors=items.shape[1],
            init=start,
            random_state=seed,
            n_jobs=1,
            precomputed_knn=(items, distances),
            force_approximation_algorithm=True,  # or it searches for neighbors itself where images are few
        ).fit_transform(vectors)
    placed: Float32 = made.astype(np.float32)
    return placed


def _encoded(picture: Picture | None) -> dict[str, bytes | None] | None:
    if picture is None:
        return None
    encoded = io.BytesIO()
    Image.fromarray(picture).save(encoded, "JPEG", quality=85)
    return {"bytes": encoded.getvalue(), "path": None}
