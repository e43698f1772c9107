"""The split of a labeled folder into training, validation and test images, without leaks.

Files of the same bytes count as one image, so that none is in two parts. Within a class the images are
ordered by a hash of their paths: the first tenth is for the test, the next one for validation. So the split
depends on nothing but the paths and the seed, and an image more moves few of the others.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from imgindex.errors import InputError
from imgindex.models.training.results import PARTS

TRAIN, VALIDATION, TEST = PARTS

# The share of a class's images that are for validation, and for the test.
_SHARE = 0.1

# Distinct images of a class: one for each part.
FEWEST_IMAGES = 3

# Where copies of an image lie in several of the folders, it counts for the part that must not leak.
_FIRST_TO_KEEP = (TEST, VALIDATION, TRAIN)


@dataclass(frozen=True)
class LabeledImage:
    """A decoded image of a labeled folder.

    Attributes:
        uri: Its path in the folder.
        label: Its class.
        sha256: Digest of its bytes.
        part: The part whose folder it lies in; None where the folder has no parts.
        position: Where its pixels are.
    """

    uri: str
    label: str
    sha256: str
    part: str | None
    position: int


@dataclass(frozen=True)
class Distinct:
    """Images without their copies.

    Attributes:
        images: One of each group of copies, sorted by uri.
        copies: How many files are copies of another one that stays.
        contradictory: Groups of copies with several labels, of which none stays: their uris.
    """

    images: tuple[LabeledImage, ...]
    copies: int
    contradictory: tuple[tuple[str, ...], ...]


def without_copies(images: Iterable[LabeledImage]) -> Distinct:
    """Keeps one of the images that have the same bytes: in the test's folder, if one lies there."""
    groups: dict[str, list[LabeledImage]] = defaultdict(list)
    for image in images:
        groups[image.sha256].append(image)
    kept, contradictory = [], []
    for group in groups.values():
        if len({image.label for image in group}) > 1:
            contradictory.append(tuple(sorted(image.uri for image in group)))
        else:
            kept.append(min(group, key=lambda image: (_FIRST_TO_KEEP.index(image.part or TRAIN), image.uri)))
    copies = sum(map(len, groups.values())) - len(kept) - sum(map(len, contradictory))
    return Distinct(tuple(sorted(kept, key=lambda image: image.uri)), copies, tuple(sorted(contradictory)))


def split(images: Sequence[LabeledImage], seed: int) -> dict[str, list[LabeledImage]]:
    """The images of each part, in the order of `images`, which are distinct.

    Images with a part stay in it. Where no image has the part ``validation`` or ``test``, each class gives it
    a tenth of its images for training, and one at least.

    Raises:
        InputError: There are fewer than two classes, or a class has too few images.
    """
    by_label: dict[str, list[LabeledImage]] = defaultdict(list)
    for image in images:
        by_label[image.label].append(image)
    if len(by_label) < 2:
        have = f"all images have the label {next(iter(by_label))!r}" if by_label else "no image has a label"
        raise InputError(
            f"{have}; a classifier needs two classes at least: give a folder with a folder for each class"
        )
    given = {image.part for image in images} - {None}
    drawn = [part for part in (TEST, VALIDATION) if part not in given]
    part_of: dict[int, str] = {}
    for label, of_label in sorted(by_label.items()):
        free = [image for image in of_label if image.part in (None, TRAIN)]
        if len(free) <= len(drawn):
            raise InputError(
                f"the class {label!r} has {len(free)} distinct images for training, and {len(drawn) + 1} are "
                "the fewest: add images, or take its folder away"
            )
        part_of |= {image.position: image.part for image in of_label if image.part is not None}
        free.sort(key=lambda image: (_hash(image.uri, seed), image.uri))
        share = max(1, round(_SHARE * len(free)))
        for number, part in enumerate(drawn):
            part_of |= {image.position: part for image in free[number * share : (number + 1) * share]}
        part_of |= {image.position: TRAIN for image in free[len(drawn) * share :]}
    parts: dict[str, list[LabeledImage]] = {part: [] for part in PARTS}
    for image in images:
        parts[part_of[image.position]].append(image)
    return parts


def counts(parts: Mapping[str, Sequence[LabeledImage]], classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """How many images of each class each part has."""
    return {
        part: {label: sum(image.label == label for image in images) for label in classes}
        for part, images in parts.items()
    }


def _hash(uri: str, seed: int) -> bytes:
    return blake2b(uri.encode(), digest_size=8, salt=seed.to_bytes(8)).digest()
