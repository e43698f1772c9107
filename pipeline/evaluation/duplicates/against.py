"""Finds what one index holds of another: images of a test set that the training set has, for example."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from imgindex.errors import UsageError
from imgindex.evaluation.collection import Collection
from imgindex.evaluation.duplicates.candidates import CandidateSearch
from imgindex.evaluation.duplicates.exact_similarity import FeatureFile, pair_similarities
from imgindex.evaluation.duplicates.images import first_images, rows_of
from imgindex.evaluation.duplicates.results import Counts, Duplicate, DuplicateGroup, Duplicates, Groups

Items = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Raw:
    """An image of the one index, and those of the other that it is a duplicate of."""

    image: int  # the first of its bytes
    others: Items  # each the first of its bytes; the most similar comes first
    similarities: Float64  # of `others`
    kind: str


def find_against(collection: Collection, other: Collection, is_new: Flags, threshold: float) -> Duplicates:
    """The images of `collection`, of those that are new, of which `other` holds duplicates.

    Raises UsageError where the features of both are not comparable.
    """
    _check_specs(collection, other)
    asked = np.unique(first_images(collection)[is_new])
    same = _same_bytes(collection, other, asked)
    pairs, found = _near(collection, other, asked, threshold)
    # Engines may have given the same bytes features that differ in their last digits.
    of_same = np.isin(_key(pairs, other), _key(same, other))
    pairs = np.concatenate([same, pairs[~of_same]])
    found = np.concatenate([np.ones(len(same)), found[~of_same]])
    order = np.lexsort((pairs[:, 1], -found, pairs[:, 0]))
    pairs, found = pairs[order], found[order]
    has_same = set(same[:, 0].tolist())
    raw = []
    for image in np.unique(pairs[:, 0]).tolist():
        start, stop = np.searchsorted(pairs[:, 0], [image, image + 1])
        kind = "exact" if image in has_same else "near"
        raw.append(_Raw(image, pairs[start:stop, 1], found[start:stop], kind))
    raw.sort(key=lambda each: (each.kind, -float(each.similarities[0]), each.image))

    copies = collection.copies

    def counts(kind: str) -> Counts:
        images = [int(copies[each.image]) for each in raw if each.kind == kind]
        return Counts(len(images), sum(images), sum(images))

    return Duplicates(
        output=collection.output.root,
        generation=collection.manifest.generation,
        against=other.output.root,
        against_generation=other.manifest.generation,
        threshold=threshold,
        images=int(np.count_nonzero(is_new)),
        exact=counts("exact"),
        near=counts("near"),
        ungrouped=0,
        groups=Groups(raw, partial(_described, collection, other)),
    )


def _check_specs(collection: Collection, other: Collection) -> None:
    one, two = collection.manifest.spec, other.manifest.spec
    if one.digest == two.digest:
        return
    values = zip(asdict(one).items(), asdict(two).values(), strict=True)
    differing = [
        name.replace("_", " ") for (name, value), of_other in values if value != of_other and name != "digest"
    ]
    raise UsageError(
        f"{collection.output.root} and {other.output.root} cannot be compared, for their specs differ in "
        f"{', '.join(differing)}; build one of them with the settings of the other"
    )


def _key(pairs: Items, other: Collection) -> Items:
    keys: Items = pairs[:, 0] * len(other) + pairs[:, 1]
    return keys


def _same_bytes(collection: Collection, other: Collection, asked: Items) -> Items:
    """Pairs [p, 2] of one of `asked` and the first image of `other` with the same bytes."""
    digests = collection.sha256.take(collection.contents[asked])
    contents = pc.index_in(digests, value_set=other.sha256).fill_null(-1).to_numpy().astype(np.int64)
    firsts = np.unique(other.contents, return_index=True)[1]
    there = contents >= 0
    return np.stack([asked[there], firsts[contents[there]]], axis=1)


def _near(collection: Collection, other: Collection, asked: Items, threshold: float) -> tuple[Items, Float64]:
    """Pairs [p, 2] of one of `asked` and one of `other` that reach the threshold, and their similarities."""
    search = CandidateSearch(other.shards, other.basis, first_images(other), threshold, both_ways=False)
    is_asked = np.zeros(len(collection), bool)
    is_asked[asked] = True

    def queries() -> Iterator[tuple[Items, Float32]]:
        # On the basis of the other index, which is of other images.
        for images, features in collection.feature_blocks():
            mine = is_asked[images]
            yield images[mine], other.basis.project(features[mine])

    pairs = np.concatenate([np.empty((0, 2), np.int64), *search.pairs(queries(), len(asked))])
    if not len(pairs):
        return pairs, np.empty(0)
    dims = collection.manifest.feature_dim
    one = FeatureFile(np.unique(pairs[:, 0]), collection.feature_blocks(), dims)
    two = FeatureFile(np.unique(pairs[:, 1]), other.feature_blocks(), dims)
    found = pair_similarities(one, two, pairs)
    return pairs[found >= threshold], found[found >= threshold]


def _described(collection: Collection, other: Collection, group: _Raw) -> DuplicateGroup:
    own = collection.copies_of(np.array([group.image]))
    images = [
        Duplicate(index=collection.output.root, similarity=1.0, **row) for row in rows_of(collection, own)
    ]
    for image, similarity in zip(group.others, group.similarities, strict=True):
        rows = rows_of(other, other.copies_of(image[np.newaxis]))
        images += [Duplicate(index=other.output.root, similarity=float(similarity), **row) for row in rows]
    return DuplicateGroup(group.kind, float(group.similarities.min()), "", tuple(images))
