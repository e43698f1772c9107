"""What TensorBoard's embedding projector shows: vectors, their uris and labels, and thumbnails."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from imgindex.sinks.folder import NewFiles
from imgindex.sinks.options import ExportOptions
from imgindex.sinks.sample import Sample
from imgindex.sinks.source import Source
from imgindex.sinks.thumbnails import thumbnails

# The projector refuses a larger sprite, in pixels of a side.
_MOST_PIXELS = 8192
# A thumbnail's side, where there is room for that.
_SIDE = 64
# What stands for an image that cannot be read.
_GRAY = 128

# Characters that would end a value, or look as if they did.
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def write(files: NewFiles, source: Source, options: ExportOptions) -> None:
    """Writes ``tensors.tsv``, ``metadata.tsv``, ``sprite.png`` and configs, for at most `options.images`.

    `options.seed` draws the images where there are more. Line i of the tensors, line i of the metadata below
    its heading, and cell i of the sprite, row by row, are of one image. ``projector_config.pbtxt`` is what
    TensorBoard looks for in its `--logdir`, and ``projector_config.json`` what its own page takes.

    The sprite is in memory, of at most 192 MiB. Raises UsageError for an option out of range.
    """
    sample = Sample.asked_for(options, source)
    tables = []
    with files.open("tensors.tsv") as tensors, files.open("metadata.tsv") as metadata:
        metadata.write(b"uri\tlabel\n")
        for images, vectors in sample.rows(source):
            tables.append(images)
            for vector in vectors:
                # The shortest text that is read as the same float32.
                tensors.write("\t".join(vector.astype(str)).encode() + b"\n")
            for uri, label in zip(images["uri"].to_pylist(), images["label"].to_pylist(), strict=True):
                metadata.write(f"{_escaped(uri)}\t{_escaped(label or '')}\n".encode())
    images = pa.concat_tables(tables)
    cells = math.ceil(math.sqrt(len(images)))
    side = min(_SIDE, _MOST_PIXELS // cells)
    with files.open("sprite.png") as file:
        Image.fromarray(_sprite(thumbnails(source.manifest, images, side), cells, side)).save(file, "PNG")
    _write_configs(files, [len(images), source.manifest.dims], side)
    files.facts |= asdict(sample)


def _escaped(value: str) -> str:
    return value.translate(_ESCAPES)


def _sprite(pictures: Iterator[npt.NDArray[np.uint8] | None], cells: int, side: int) -> npt.NDArray[np.uint8]:
    """A square of `cells` by `cells` cells of `side` pixels, with a picture in the middle of each."""
    sprite = np.full((cells * side, cells * side, 3), _GRAY, np.uint8)
    for number, picture in enumerate(pictures):
        if picture is not None:
            height, width, _ = picture.shape
            top = number // cells * side + (side - height) // 2
            left = number % cells * side + (side - width) // 2
            sprite[top : top + height, left : left + width] = picture
    return sprite


def _write_configs(files: NewFiles, shape: list[int], side: int) -> None:
    """The same config as a text of Protocol Buffers, and as JSON."""
    with files.open("projector_config.pbtxt") as file:
        file.write(
            f"""embeddings {{
  tensor_name: "imgindex"
  tensor_shape: {shape[0]}
  tensor_shape: {shape[1]}
  tensor_path: "tensors.tsv"
  metadata_path: "metadata.tsv"
  sprite {{
    image_path: "sprite.png"
    single_image_dim: {side}
    single_image_dim: {side}
  }}
}}
""".encode()
        )
    embedding = {
        "tensorName": "imgindex",
        "tensorShape": shape,
        "tensorPath": "tensors.tsv",
        "metadataPath": "metadata.tsv",
        "sprite": {"imagePath": "sprite.png", "singleImageDim": [side, side]},
    }
    with files.open("projector_config.json") as file:
        file.write(json.dumps({"embeddings": [embedding]}, indent=2).encode() + b"\n")
