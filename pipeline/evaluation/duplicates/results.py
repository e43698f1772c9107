"""What a search for duplicates gives: groups of images, and which of each to keep."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar, overload

_Raw = TypeVar("_Raw")

# The least similarity of near duplicates, unless it is said. docs/duplicates.md says how it was measured.
THRESHOLD = 0.95


@dataclass(frozen=True, slots=True)
class Duplicate:
    """An image of a group."""

    uri: str
    index: str  # the directory of the index that holds it
    similarity: float  # to the first image of the group
    sha256: str
    size: int  # bytes
    width: int
    height: int
    label: str | None


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """Images that are duplicates of each other. Each two of them reach the threshold.

    In a search against another index the first image, and its exact copies, are of the one index, and the
    others of the other. Then only pairs of the first image and another one need reach the threshold.
    """

    kind: str  # "exact", where all have the same bytes; else "near"
    least_similarity: float  # of the pairs that reach the threshold
    why: str  # what the first, which is to be kept, is ahead of the next one in; "" against another index
    images: tuple[Duplicate, ...]  # the first is the one to keep


@dataclass(frozen=True)
class Counts:
    """How many groups there are, and how many images are in them, each counted once."""

    groups: int
    images: int
    surplus: int  # those that go if one of each group is kept


class Groups(Sequence[DuplicateGroup], Generic[_Raw]):
    """Groups, of which there may be many: each is made when it is asked for."""

    def __init__(self, raw: Sequence[_Raw], make: Callable[[_Raw], DuplicateGroup]) -> None:
        """Of `raw` groups, of which `make` makes what is given."""
        self._raw = raw
        self._make = make

    def __len__(self) -> int:
        """How many groups there are."""
        return len(self._raw)

    @overload
    def __getitem__(self, number: int) -> DuplicateGroup: ...
    @overload
    def __getitem__(self, number: slice) -> list[DuplicateGroup]: ...
    def __getitem__(self, number: int | slice) -> DuplicateGroup | list[DuplicateGroup]:
        """One group, or a list of several."""
        if isinstance(number, slice):
            return list(map(self._make, self._raw[number]))
        return self._make(self._raw[number])


@dataclass(frozen=True)
class Duplicates:
    """The duplicates among the images of an index, or those that another index holds as well."""

    output: str  # the index's directory
    generation: str
    against: str | None  # the directory of the other index
    against_generation: str | None
    threshold: float
    images: int  # how many were looked at
    exact: Counts  # groups of files of the same bytes
    near: Counts  # all others
    # Images in no group that reach the threshold with an image of one, but not with all of its images. They
    # are not counted where only groups across labels or folders are given, nor against another index.
    ungrouped: int
    groups: Sequence[DuplicateGroup]  # the largest first

    @property
    def all(self) -> Counts:
        """Exact and near ones together."""
        pairs = zip(asdict(self.exact).values(), asdict(self.near).values(), strict=True)
        return Counts(*(one + other for one, other in pairs))


# Of a CSV file, which has a line for each image.
COLUMNS = (
    "group", "kind", "keep", "uri", "index", "similarity", "least_similarity", "why", "sha256", "size",
    "width", "height", "label",
)  # fmt: skip


def csv_rows(found: Duplicates) -> Iterator[Sequence[object]]:
    """What a CSV file holds: the names of its columns, then a row for each image."""
    yield COLUMNS
    for number, group in enumerate(found.groups, start=1):
        for place, image in enumerate(group.images):
            described = asdict(image)
            described |= {"group": number, "kind": group.kind, "least_similarity": group.least_similarity}
            described |= {"keep": "yes" if place == 0 else "no", "why": "" if place else group.why}
            yield [described[column] for column in COLUMNS]


def json_head(found: Duplicates) -> dict[str, Any]:
    """What a JSON file says of all groups."""
    fields = {name: getattr(found, name) for name in (
        "output", "generation", "against", "against_generation", "threshold", "images", "ungrouped",
    )}  # fmt: skip
    return fields | {name: asdict(getattr(found, name)) for name in ("exact", "near", "all")}
