"""Finds duplicates: files of the same bytes by their digest, near ones by their features."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from imgindex.errors import OutputError, UsageError
from imgindex.evaluation.collection import Collection, read_collection
from imgindex.evaluation.duplicates.against import find_against
from imgindex.evaluation.duplicates.candidates import MOST, CandidateSearch
from imgindex.evaluation.duplicates.exact_similarity import FeatureFile, pair_similarities, similarities
from imgindex.evaluation.duplicates.grouping import Group, group_nodes
from imgindex.evaluation.duplicates.images import first_images, order_of_keeping, rows_of
from imgindex.evaluation.duplicates.results import (
    THRESHOLD,
    Counts,
    Duplicate,
    DuplicateGroup,
    Duplicates,
    Groups,
)
from imgindex.generations.layout import files_of, read_manifest
from imgindex.generations.manifest import Manifest
from imgindex.indexing.shard_files import read_digests

Items = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]

Across = Literal["labels", "folders"]

# Vectors that are copied at once: of 150 dimensions 40 MiB.
_BLOCK_ROWS = 1 << 16


def duplicates(
    output: str | Path,
    threshold: float = THRESHOLD,
    *,
    across: Across | None = None,
    against: str | Path | None = None,
    new: bool = False,
    generation: str | None = None,
) -> Duplicates:
    """Finds images that are duplicates of each other. It deletes nothing, and does not read the images.

    Exact duplicates are files of the same bytes. Near ones are images whose features have a cosine of at
    least `threshold`: the index names candidates, whose stored features are then compared exactly. Every pair
    of a group reaches the threshold.

    Args:
      output: the index's directory.
      threshold: the least cosine of the features of near duplicates, above 0 and at most 1.
      across: give only groups whose images have several labels, or lie in several folders.
      against: the directory of another index, made with the same spec. Gives the images of `output` that it
        holds, too, each with those that it is a duplicate of.
      new: look only for duplicates of the images that the last refresh has added or changed.
      generation: the generation's name; the live one by default.

    Raises:
      UsageError: an argument is out of range, or the indexes are of different specs.
      OutputError: an index or its store cannot be read, or the generation before is needed and is not there.
    """
    return duplicates_in(output, threshold, across=across, against=against, new=new, generation=generation)[0]


def duplicates_in(
    output: str | Path,
    threshold: float = THRESHOLD,
    *,
    across: Across | None = None,
    against: str | Path | None = None,
    new: bool = False,
    generation: str | None = None,
) -> tuple[Duplicates, dict[str, Manifest]]:
    """As `duplicates`; gives also the manifest of each index, by its directory."""
    if not 0 < threshold <= 1:
        raise UsageError(f"threshold is {threshold:g}; expected a number above 0 and at most 1")
    if across not in (None, "labels", "folders"):
        raise UsageError(f"across is {across!r}; expected labels or folders")
    if across and against is not None:
        raise UsageError("across and against do not go together: leave one of them out")
    collection = read_collection(output, generation)
    is_new = _new_images(collection) if new else np.ones(len(collection), bool)
    if against is not None:
        other = read_collection(against)
        found = find_against(collection, other, is_new, threshold)
        return found, {each.output.root: each.manifest for each in (collection, other)}
    found = _among_themselves(collection, is_new, threshold, across)
    return found, {collection.output.root: collection.manifest}


def _new_images(collection: Collection) -> Flags:
    """Which images the generation before did not have, or had with other bytes. Raises OutputError."""
    manifest = collection.manifest
    if manifest.previous is None:
        return np.ones(len(collection), bool)
    try:
        before = read_manifest(collection.output, manifest.previous)
        files = files_of(collection.output, before)
        lists = (read_digests(files[shard.metadata]) for shard in before.shards)
        held = {(image.uri, image.sha256) for images in lists for image in images}
    except OutputError as error:
        raise OutputError(
            f"what is new in generation {manifest.generation} is not known, for the one before it cannot be "
            f"read ({error}); look at all images instead, and keep two generations when you prune"
        ) from error
    digests = collection.sha256.take(collection.contents).to_pylist()
    pairs = zip(collection.uris.to_pylist(), digests, strict=True)
    return np.array([pair not in held for pair in pairs], bool)


@dataclass(frozen=True)
class _Raw:
    """A group before its images are described."""

    images: Items  # in ascending order
    least: float
    kind: str


def _among_themselves(
    collection: Collection, is_new: Flags, threshold: float, across: Across | None
) -> Duplicates:
    # The first of the images with the same bytes stands for all of them.
    first_of = first_images(collection)
    asked = np.unique(first_of[is_new])
    pairs = _candidates(collection, first_of, asked, threshold)
    features = None
    groups: list[Group] = []
    ungrouped = grouped = np.empty(0, np.int64)
    if len(pairs):
        features = FeatureFile(np.unique(pairs), collection.feature_blocks(), collection.manifest.feature_dim)
        found = pair_similarities(features, features, pairs)
        groups = group_nodes(pairs, found, partial(similarities, features), threshold, MOST)
        grouped = np.concatenate([grouped, *(group.nodes for group in groups)])
        ungrouped = np.setdiff1d(pairs[found >= threshold], grouped)
    copied = np.setdiff1d(asked[collection.copies[asked] > 1], grouped)
    raw = [_Raw(collection.copies_of(group.nodes), group.least, "near") for group in groups]
    raw += [_Raw(collection.copies_of(image), 1.0, "exact") for image in copied[:, np.newaxis]]
    if across:
        places = collection.labels if across == "labels" else collection.folders
        raw = [group for group in raw if len(np.unique(places[group.images])) > 1]
    raw.sort(key=lambda group: (-len(group.images), int(group.images[0])))
    return Duplicates(
        output=collection.output.root,
        generation=collection.manifest.generation,
        against=None,
        against_generation=None,
        threshold=threshold,
        images=int(np.count_nonzero(is_new)),
        exact=_counts([group for group in raw if group.kind == "exact"]),
        near=_counts([group for group in raw if group.kind == "near"]),
        ungrouped=0 if across else int(collection.copies[ungrouped].sum()),
        groups=Groups(raw, partial(_described, collection, first_of, features)),
    )


def _candidates(collection: Collection, first_of: Items, asked: Items, threshold: float) -> Items:
    """Pairs [p, 2] of images of different bytes that may be near, the lower first, each once."""
    search = CandidateSearch(
        collection.shards,
        collection.basis,
        first_of,
        threshold,
        both_ways=len(asked) == len(collection.sha256),
    )

    def queries() -> Iterator[tuple[Items, Float32]]:
        for start in range(0, len(asked), _BLOCK_ROWS):
            images = asked[start : start + _BLOCK_ROWS]
            yield images, collection.vectors[images]

    keys = [np.empty(0, np.int64)]  # a number for each pair, which takes half the memory
    for pairs in search.pairs(queries(), len(asked)):
        lower, higher = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1).T
        keys.append(lower * len(first_of) + higher)
    return np.stack(np.divmod(np.unique(np.concatenate(keys)), len(first_of)), axis=1)


def _counts(groups: Sequence[_Raw]) -> Counts:
    images = sum(len(group.images) for group in groups)
    return Counts(len(groups), images, images - len(groups))


def _described(
    collection: Collection, first_of: Items, features: FeatureFile | None, group: _Raw
) -> DuplicateGroup:
    rows = rows_of(collection, group.images)
    order, why = order_of_keeping(rows)
    images = group.images[order]
    found = np.ones(len(images))
    if features is not None and group.kind == "near":
        nodes = first_of[images]
        distinct, place = np.unique(nodes, return_inverse=True)
        found = similarities(features, nodes[:1], distinct)[0][place]
        found[nodes == nodes[0]] = 1.0
    return DuplicateGroup(
        group.kind,
        group.least,
        why,
        tuple(
            Duplicate(index=collection.output.root, similarity=float(similarity), **rows[place])
            for place, similarity in zip(order, found, strict=True)
        ),
    )
