"""One generation as arrays: what its images are, their vectors, and their features, block by block."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from imgindex.errors import DamagedError, MismatchError, OutputError
from imgindex.evaluation.stacked_rows import StackedRows
from imgindex.features import feature_store
from imgindex.generations.layout import Output, files_of, open_generation
from imgindex.generations.manifest import Manifest
from imgindex.indexing.shard_files import FILES_OF_A_SHARD, OpenedShard, contents_of, open_shard, read_basis
from imgindex.io import content_addressed
from imgindex.models.ann.shard_index import ShardIndex
from imgindex.models.pca import Basis
from imgindex.runtime.background import in_order
from imgindex.runtime.resources import allow_open_files
from imgindex.runtime.temporary_folder import TemporaryFolder
from imgindex.text import counted

Float32 = npt.NDArray[np.float32]
Float16 = npt.NDArray[np.float16]
Items = npt.NDArray[np.int64]

NO_LABEL = -1

# Features of a collection that are kept in memory, in bytes; of a larger one they are read again when they
# are needed.
_KEPT_BYTES = 1 << 29
# Rows of features that are worked on at once: 64 MiB of 2,048 float32.
_BLOCK_ROWS = 1 << 13


class Images(Protocol):
    """Images of a generation, all or a sample. Row i of every array is the same image."""

    @property
    def manifest(self) -> Manifest:
        """The manifest of the generation."""

    @property
    def uris(self) -> pa.ChunkedArray:
        """The uris [n]."""

    @property
    def contents(self) -> Items:
        """A number of each image's bytes [n]: equal exactly for copies."""

    @property
    def labels(self) -> Items:
        """Numbers of `label_names` [n]; NO_LABEL where an image has none."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the labels."""

    @property
    def sha256(self) -> pa.Array:
        """The digest of each content."""

    @property
    def vectors(self) -> Float32 | StackedRows:
        """The vectors [n, dims], as the index holds them."""

    def __len__(self) -> int:
        """How many images there are."""


@dataclass(frozen=True)
class Collection:
    """The images of a generation. Row i of every array is the same image; shard after shard."""

    output: Output
    manifest: Manifest
    basis: Basis
    shards: tuple[ShardIndex, ...]
    uris: pa.ChunkedArray
    contents: Items  # [n], a number of each image's bytes: equal exactly for copies
    labels: Items  # [n], numbers of `label_names`; NO_LABEL where an image has none
    label_names: tuple[str, ...]
    sha256: pa.Array  # of each content
    sizes: pa.Table  # [n]: size in bytes, width and height in pixels
    _copies: TemporaryFolder  # of files of an object store; lives as long as the shards do

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.contents)

    @property
    def starts(self) -> Items:
        """The number of the first image of each shard, and of all images."""
        return np.concatenate([[0], np.cumsum([len(shard.vectors) for shard in self.shards])])

    @cached_property
    def vectors(self) -> StackedRows:
        """The vectors [n, dims], as the index holds them: mapped files."""
        return StackedRows([shard.vectors for shard in self.shards])

    @cached_property
    def _images(self) -> tuple[Items, Items]:
        """The images in the order of their contents, and where those of each content begin."""
        order = np.argsort(self.contents, kind="stable")
        return order, np.searchsorted(self.contents[order], np.arange(len(self.sha256) + 1))

    @property
    def copies(self) -> Items:
        """How many images have the content of each image [n], itself among them."""
        return np.diff(self._images[1])[self.contents]

    @cached_property
    def _digests(self) -> tuple[npt.NDArray[np.bytes_], Items]:
        """The digest of each content in ascending order, and the contents in this order."""
        digests = _as_bytes(self.sha256)
        order = np.argsort(digests)
        return digests[order], order

    def _contents_of(self, digests: pa.ChunkedArray) -> Items:
        """The content of each of some `digests`; -1 of those that no image has."""
        known, contents = self._digests
        asked = _as_bytes(digests)
        places = np.minimum(np.searchsorted(known, asked), len(known) - 1)
        return np.where(known[places] == asked, contents[places], -1)

    def copies_of(self, images: Items) -> Items:
        """The images that have the bytes of any of `images`, which are of different bytes, in their order."""
        return np.sort(self._images_with(self.contents[images]))

    def _images_with(self, contents: Items) -> Items:
        """The images of each of `contents`, one content after the other."""
        order, starts = self._images
        of_each = [order[starts[content] : starts[content + 1]] for content in contents]
        return np.concatenate([np.empty(0, np.int64), *of_each])

    @cached_property
    def folders(self) -> Items:
        """A number of the folder that each image lies in [n]."""
        folders = pa.compute.replace_substring_regex(self.uris, pattern="[^/]*$", replacement="")
        return contents_of(folders).astype(np.int64)

    def feature_blocks(self) -> Iterator[tuple[Items, Float16]]:
        """All features, at most `_BLOCK_ROWS` at a time: numbers of images, and features [b, feature_dim].

        Every image comes once. Raises OutputError where the store lacks some.
        """
        yield from self._kept if self._kept is not None else self._read_blocks()

    @cached_property
    def _kept(self) -> list[tuple[Items, Float16]] | None:
        small = len(self) * self.manifest.feature_dim * np.float16().itemsize <= _KEPT_BYTES
        return list(self._read_blocks()) if small else None

    def _read_blocks(self) -> Iterator[tuple[Items, Float16]]:
        directory = self.output.store(self.manifest.spec.digest)
        missing = np.ones(len(self.sha256), bool)
        unreadable = ""
        waiting: list[tuple[Items, Float16]] = []
        rows = 0
        names, seen = content_addressed.names(directory), set[str]()
        while names:
            seen.update(names)
            pruned = False
            for chunk in in_order(partial(_read_chunk, directory), names):
                if isinstance(chunk, MismatchError):  # nothing of it may be needed
                    unreadable = f"; {chunk}"
                    continue
                if isinstance(chunk, DamagedError):  # a prune has moved what is needed of it to another chunk
                    pruned = True
                    continue
                digests, features = chunk
                contents, first = np.unique(self._contents_of(digests), return_index=True)
                new = (contents >= 0) & missing[contents]
                contents, first = contents[new], first[new]
                missing[contents] = False
                images = self._images_with(contents)
                starts = self._images[1]
                counts = starts[contents + 1] - starts[contents]
                waiting.append((images, features[np.repeat(first, counts)]))
                rows += len(images)
                if rows >= _BLOCK_ROWS:
                    yield from _blocks(waiting)
                    waiting, rows = [], 0
            listed = content_addressed.names(directory) if pruned else []
            names = [each for each in listed if each not in seen]
        yield from _blocks(waiting)
        if missing.any():
            raise OutputError(
                f"{directory} lacks the features of {counted(int(missing.sum()), 'image')} of generation "
                f"{self.manifest.generation}{unreadable}; build again to embed them"
            )


def _read_chunk(directory: str, name: str) -> tuple[pa.ChunkedArray, Float16] | MismatchError | DamagedError:
    """As `feature_store.read_chunk`; gives errors of damage, which may not matter."""
    try:
        return feature_store.read_chunk(directory, name)
    except (MismatchError, DamagedError) as error:
        return error


def _as_bytes(digests: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.bytes_]:
    """Hexadecimal digests of SHA-256 as an array that can be searched."""
    return np.array(digests.to_pylist(), "S64")


def _blocks(waiting: list[tuple[Items, Float16]]) -> Iterator[tuple[Items, Float16]]:
    if not waiting:
        return
    images = np.concatenate([images for images, _ in waiting])
    features = np.concatenate([features for _, features in waiting])
    for start in range(0, len(images), _BLOCK_ROWS):
        yield images[start : start + _BLOCK_ROWS], features[start : start + _BLOCK_ROWS]


def read_collection(output: str | Path, generation: str | None = None) -> Collection:
    """Opens a generation of `output`, the live one by default. Raises OutputError where it cannot be read."""
    layout = Output(str(output))
    return open_generation(layout, generation, partial(_read, layout))


def _read(layout: Output, manifest: Manifest) -> Collection:
    allow_open_files(FILES_OF_A_SHARD * len(manifest.shards))
    files = files_of(layout, manifest)
    copies = TemporaryFolder()
    shards: list[OpenedShard] = [
        open_shard(
            files[shard.index],
            files[shard.metadata],
            Path(copies.name),
            items=shard.items,
            dims=manifest.dims,
            metric=manifest.metric,
        )
        for shard in manifest.shards
    ]
    basis = read_basis(files[manifest.basis])
    if (basis.dims, basis.feature_dim) != (manifest.dims, manifest.feature_dim):
        raise DamagedError(f"{files[manifest.basis].path} is of other dimensions")
    table = pa.concat_tables([shard.metadata for shard in shards])
    return Collection(
        output=layout,
        manifest=manifest,
        basis=basis,
        shards=tuple(shard.index for shard in shards),
        **columns_of(table),
        sizes=table.select(["size", "width", "height"]),
        _copies=copies,
    )


def columns_of(metadata: pa.Table) -> dict[str, Any]:
    """What `Images` says of the images of a table of metadata: uris, contents, labels and digests."""
    table = metadata.select(["uri", "sha256", "label"])
    # Offsets of 32 bits would end at 2 GiB of text.
    table = table.cast(pa.schema([(name, pa.large_string()) for name in table.column_names]))
    contents = contents_of(table["sha256"]).astype(np.int64)
    _, first = np.unique(contents, return_index=True)
    labels = table["label"].combine_chunks().dictionary_encode()
    return {
        "uris": table["uri"],
        "contents": contents,
        "labels": labels.indices.fill_null(NO_LABEL).to_numpy(zero_copy_only=False).astype(np.int64),
        "label_names": tuple(labels.dictionary.to_pylist()),
        "sha256": table["sha256"].take(first).combine_chunks(),
    }
