"""Duplicates that are planted among photos: how many `imgindex.duplicates` finds, and what else it finds.

Of each kind of copy some photos get one, which lies in a folder of its own beside the photos:

    exact       the same bytes
    re-encoded  JPEG of quality 60
    resized     to half the width and height
    cropped     by 2 % of width and height, at a random place
    flipped     left to right
    brightness  times 1.3

Recall is the share of copies that are in a group with the photo that they were made of. Precision is the
share of pairs of images in groups that are a photo and its copy. That of a kind looks at pairs of a copy of
that kind with another image.
"""

import argparse
import shutil
import tempfile
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
from measure import machine
from PIL import Image, ImageEnhance, ImageOps

import imgindex
from imgindex.config import BackboneConfig, Config, PublishConfig

KINDS = ("exact", "re-encoded", "resized", "cropped", "flipped", "brightness")
THRESHOLDS = (0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99)


def plant(photo: Path, copy: Path, kind: str, generator: np.random.Generator) -> None:
    """Writes a copy of `photo` of that kind."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    if kind == "exact":
        shutil.copy(photo, copy)
        return
    with Image.open(photo) as opened:
        image = opened.convert("RGB")
    width, height = image.size
    quality = 95
    if kind == "re-encoded":
        quality = 60
    elif kind == "resized":
        image = image.resize((max(1, width // 2), max(1, height // 2)))
    elif kind == "cropped":
        size = round(0.98 * width), round(0.98 * height)
        left, top = (
            int(generator.integers(0, whole - part + 1)) for whole, part in zip(image.size, size, strict=True)
        )
        image = image.crop((left, top, left + size[0], top + size[1]))
    elif kind == "flipped":
        image = ImageOps.mirror(image)
    else:
        image = ImageEnhance.Brightness(image).enhance(1.3)
    image.save(copy, quality=quality)


def judged(
    output: Path, threshold: float
) -> tuple[Counter[str], Counter[str], Counter[str], set[frozenset[str]]]:
    """By kind: copies found, pairs with a copy, and those of them that are right; and all wrong pairs."""
    found: Counter[str] = Counter()
    pairs: Counter[str] = Counter()
    right: Counter[str] = Counter()
    wrong: set[frozenset[str]] = set()
    for group in imgindex.duplicates(output, threshold).groups:
        uris = [image.uri for image in group.images]
        for uri in uris:
            if uri.startswith("copies/"):
                found[kind_of(uri)] += source_of(uri) in uris
        for one, other in combinations(uris, 2):
            is_right = source_of(one) == source_of(other)
            for kind in {kind_of(one), kind_of(other), "all"} - {""}:
                pairs[kind] += 1
                right[kind] += is_right
            if not is_right:
                wrong.add(frozenset((one, other)))
    return found, pairs, right, wrong


def kind_of(uri: str) -> str:
    """The kind of a copy; nothing for a photo."""
    return uri.split("/")[1] if uri.startswith("copies/") else ""


def source_of(uri: str) -> str:
    """The photo that an image is, or was made of."""
    return uri.removeprefix(f"copies/{kind_of(uri)}/") if kind_of(uri) else uri


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("--backbone", default="MobileNetV2")
    parser.add_argument("--weights", default="bundled")
    parser.add_argument("--copies", type=int, default=20, help="of each kind in each round (default: 20)")
    parser.add_argument("--rounds", type=int, default=5, help="with other photos each (default: 5)")
    parser.add_argument("--show", type=float, default=0.95, help="list wrong pairs at this threshold")
    known = parser.parse_args()
    photos = sorted(
        path for path in known.photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png")
    )
    sums = {threshold: tuple(Counter() for _ in range(3)) for threshold in THRESHOLDS}
    wrong: dict[float, Counter[frozenset[str]]] = {threshold: Counter() for threshold in THRESHOLDS}
    for number in range(known.rounds):
        generator = np.random.default_rng(number)
        with tempfile.TemporaryDirectory() as folder:
            inputs = Path(folder, "photos")
            shutil.copytree(known.photos, inputs)
            chosen = generator.permutation(len(photos))[: known.copies * len(KINDS)]
            for place, photo in enumerate(photos[int(each)] for each in chosen):
                kind = KINDS[place % len(KINDS)]
                plant(photo, inputs / "copies" / kind / photo.relative_to(known.photos), kind, generator)
            output = Path(folder, "index")
            imgindex.build(
                Config(
                    input=str(inputs),
                    output=str(output),
                    backbone=BackboneConfig(name=known.backbone, weights=known.weights),
                    publish=PublishConfig(min_recall=0),
                )
            )
            for threshold in THRESHOLDS:
                *counts, others = judged(output, threshold)
                for total, count in zip(sums[threshold], counts, strict=True):
                    total.update(count)
                wrong[threshold].update(others)
    planted = known.copies * known.rounds
    print(machine())
    print(
        f"\n{len(photos)} photos, {planted} copies of each kind in {known.rounds} rounds, {known.backbone}\n"
    )
    for title, value in (
        ("recall", lambda counts, kind: counts[0][kind] / planted),
        ("precision", lambda counts, kind: counts[2][kind] / max(1, counts[1][kind])),
    ):
        kinds = KINDS if title == "recall" else (*KINDS, "all")
        print(f"| {title} at threshold | {' | '.join(kinds)} |")
        print(f"|---|{'---|' * len(kinds)}")
        for threshold in THRESHOLDS:
            cells = (f"{100 * value(sums[threshold], kind):.0f} %" for kind in kinds)
            print(f"| {threshold:g} | {' | '.join(cells)} |")
        print()
    print("wrong pairs of two photos in a round:")
    for threshold in THRESHOLDS:
        pairs = [each for each in wrong[threshold] if not any(uri.startswith("copies/") for uri in each)]
        print(f"  {threshold:g}: {len(pairs)}")
    for pair, count in wrong[known.show].most_common(20):
        print("   ", *sorted(pair), count)


if __name__ == "__main__":
    main()
