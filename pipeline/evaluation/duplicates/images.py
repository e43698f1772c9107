"""Describes the images of a group, and chooses the one to keep."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from imgindex.evaluation.collection import Collection
from imgindex.evaluation.report.neighborhoods import label_of

Items = npt.NDArray[np.int64]


def first_images(collection: Collection) -> Items:
    """For each image [n] the first one of the same bytes, which stands for all of them."""
    firsts = np.unique(collection.contents, return_index=True)[1]
    first_of: Items = firsts[collection.contents]
    return first_of


def rows_of(collection: Collection, images: Items) -> list[dict[str, Any]]:
    """For each of `images` its uri, sha256, size, width, height and label."""
    # One value at a time: to take several of a column, Arrow may copy all of it.
    sizes = {name: collection.sizes[name] for name in collection.sizes.column_names}
    return [
        {
            "uri": collection.uris[image].as_py(),
            "sha256": collection.sha256[collection.contents[image]].as_py(),
            "label": label_of(collection, image),
            **{name: column[image].as_py() for name, column in sizes.items()},
        }
        for image in images.tolist()
    ]


# What decides which image to keep: the first of these in which two differ. The least comes first.
_RULES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "most pixels": lambda row: -row["width"] * row["height"],
    "largest file": lambda row: -row["size"],
    "shortest path": lambda row: len(row["uri"]),
    "first path": lambda row: row["uri"],
}


def order_of_keeping(rows: Sequence[dict[str, Any]]) -> tuple[list[int], str]:
    """The places of `rows`, the image to keep first; and what it is ahead of the next one in."""
    keys = [[rule(row) for rule in _RULES.values()] for row in rows]
    order = sorted(range(len(rows)), key=keys.__getitem__)
    first, second = keys[order[0]], keys[order[1]]
    why = next(name for name, one, other in zip(_RULES, first, second, strict=True) if one != other)
    return order, why
