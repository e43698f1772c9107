"""Compares two images by every measure: their pixels, their features and their vectors."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imgindex.errors import InputError, UsageError
from imgindex.generations.layout import Output, files_of, open_generation
from imgindex.generations.manifest import Manifest
from imgindex.indexing.shard_files import read_basis, read_digests
from imgindex.models import decoder_pool
from imgindex.models.ann.protocol import Metric
from imgindex.models.batches import embed_all
from imgindex.models.measures import MEASURES, measure_scores
from imgindex.models.pca import Basis, normalize
from imgindex.models.preprocess import DecodedImage, Pixels
from imgindex.search.queries import Query, Recipe, check_query, image_path, load, name_of_query
from imgindex.search.query_engine import query_engine
from imgindex.search.results import QueryError, describe_error
from imgindex.uris import uri_of

# By the name of each measure what it gives; None where it is undefined.
Scores = dict[str, float | None]


@dataclass(frozen=True)
class ComparedImage:
    """One of the two images."""

    name: str  # the path or uri that was given, or what was given instead of one
    path: str | None  # of its file, written as a uri is; None where there is none
    has_feature: bool  # an image whose feature is zero or not finite has none


@dataclass(frozen=True)
class Comparison:
    """How similar two images are."""

    generation: str
    a: ComparedImage
    b: ComparedImage
    image_size: tuple[int, int]  # height and width that both were resized to
    pixels: Scores
    features: Scores
    vectors: Scores


def compare(output: str | Path, a: Query, b: Query, *, model: str | Path | None = None) -> Comparison:
    """Compares two images as the live generation of an index sees them.

    Both are decoded and embedded as queries are, whether they are indexed or not. Pixels are the RGB values,
    0 to 255, of both images at the size that the index's backbone takes. Features are L2-normalized and
    rounded to float16, as the store has them. Vectors are features projected on the index's basis.

    Args:
      output: the index's directory.
      a, b: what `Index.search` takes, but for vectors; or the uri of an indexed image. A file of that name
        counts before a uri.
      model: as for `Index.open`.

    Raises:
      UsageError: `a` or `b` is no image.
      InputError: an image cannot be read or decoded.
      OutputError: there is no index, or it is damaged, or its backbone is not there.
    """
    return compare_in(output, a, b, model=model)[0]


def compare_in(
    output: str | Path, a: Query, b: Query, *, model: str | Path | None = None
) -> tuple[Comparison, Manifest]:
    """As `compare`; gives also the manifest of the generation that sees the images so."""
    out = Output(str(output))
    pool = decoder_pool.acquire(1)

    def opened(found: Manifest) -> tuple[Manifest, Basis, list[_Opened]]:
        files = files_of(out, found)

        def is_indexed(uri: str) -> bool:
            return any(
                row.uri == uri for shard in found.shards for row in read_digests(files[shard.metadata])
            )

        images = [_opened(each, found, pool.decode, is_indexed) for each in (a, b)]
        return found, read_basis(files[found.basis]), images

    try:
        manifest, basis, images = open_generation(out, None, opened)
    finally:
        decoder_pool.release()
    pixels = np.stack([image.pixels for image in images])
    engine = query_engine(out.root, manifest, None if model is None else str(model))
    features, valid = normalize(embed_all(engine, pixels))
    compared = [
        ComparedImage(image.name, image.path and uri_of(image.path), bool(has_feature))
        for image, has_feature in zip(images, valid, strict=True)
    ]
    undefined: Scores = dict.fromkeys(MEASURES)
    comparison = Comparison(
        generation=manifest.generation,
        a=compared[0],
        b=compared[1],
        image_size=manifest.spec.image_size,
        pixels=_scores(pixels.reshape(2, -1)),
        features=_scores(features) if valid.all() else undefined,
        vectors=_scores(basis.project(features)) if valid.all() else undefined,
    )
    return comparison, manifest


@dataclass(frozen=True)
class _Opened:
    name: str
    path: str | None
    pixels: Pixels  # [height, width, 3]


def _opened(
    query: Query, manifest: Manifest, decode: Callable[..., DecodedImage], is_indexed: Callable[[str], bool]
) -> _Opened:
    """The image that a path leads to, or else a uri. Raises UsageError or InputError where there is none."""
    check_query(query)
    if isinstance(query, np.ndarray) and query.ndim == 1:
        raise UsageError("a vector has no pixels to compare; expected an image")
    recipe = Recipe.of(manifest)
    name = name_of_query(query)
    loaded, where = load(query, recipe, decode), ""
    if isinstance(loaded.value, QueryError) and loaded.value.reason == "vanished":
        if not is_indexed(name):
            raise InputError(f"image {name} is neither a file nor the uri of an indexed image")
        path = image_path(manifest, name)
        loaded, where = load(path, recipe, decode), f" ({path})"
    if isinstance(loaded.value, QueryError):
        if loaded.value.reason == "not_a_file":
            raise InputError(f"image {name}{where} is no file but a folder, or a pipe; name an image")
        raise InputError(f"image {name}{where}: {describe_error(loaded.value)}")
    return _Opened(name, loaded.path, loaded.value)


def _scores(rows: npt.NDArray[Any]) -> Scores:
    """Of two rows [2, d]."""
    found = {measure: float(measure_scores(measure, rows[:1], rows[1:])[0, 0]) for measure in MEASURES}
    return {measure: None if math.isnan(score) else score for measure, score in found.items()}


def comparison_table(comparison: Comparison) -> list[list[str]]:
    """Rows of texts, the first of which names the columns; the last column has what equal images have."""
    height, width = comparison.image_size
    rows = [["measure", f"pixels {width}x{height}", "features", "vectors", "if equal"]]
    for name, measure in MEASURES.items():
        scores = (kind[name] for kind in (comparison.pixels, comparison.features, comparison.vectors))
        rows.append([measure.title, *map(_shown, scores), "0" if measure.is_distance else "1"])
    return rows


def what_ranks(metric: Metric) -> str:
    """Which of the scores a search goes by, in two sentences."""
    name, better = ("cosine", "more") if metric == "angular" else ("L2", "less")
    return (
        f"A search ranks by the {name} of the vectors, where {better} is nearer: look at that one first. "
        "Compare it with that of other pairs of images, in the same column."
    )


def _shown(score: float | None) -> str:
    if score is None:
        return "undefined"
    return f"{score:,.0f}" if abs(score) >= 10_000 else f"{score:.4g}"
