"""The command `imgindex duplicates`."""

import argparse
import csv
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from imgindex.errors import DuplicatesFoundError, OutputError
from imgindex.evaluation.duplicates.find import duplicates_in
from imgindex.evaluation.duplicates.results import (
    COLUMNS,
    Counts,
    DuplicateGroup,
    Duplicates,
    csv_rows,
    json_head,
)
from imgindex.io.asked_files import JSON_GENERATOR, check_asked_files, write_text
from imgindex.runtime.standard_streams import encodable
from imgindex.text import counted, human_bytes, printable

# Groups that are printed, and images of each, at most.
_GROUPS, _IMAGES = 20, 10


def run(known: argparse.Namespace) -> None:
    """Prints the groups of duplicates, and writes them to files if asked for.

    Raises DuplicatesFoundError where there should be none.
    """
    check_asked_files(known.output, page=known.html, json=known.json, csv=known.csv, columns=COLUMNS)
    found, manifests = duplicates_in(
        known.output, known.threshold, across=known.across, against=known.against, new=known.new
    )
    print(encodable("\n".join(_lines(found))))
    try:
        if known.csv:
            _write_csv(known.csv, found)
        if known.json:
            _write_json(known.json, found)
    except OSError as error:
        raise OutputError(f"{error.filename}: cannot be written: {error.strerror}") from error
    if known.html:
        from imgindex.evaluation.duplicates.page import duplicates_page

        write_text(known.html, duplicates_page(found, manifests))
    if known.fail_if_found and found.groups:
        raise DuplicatesFoundError(f"{_images(found.all)} found, where --fail_if_found allows none")


def _lines(found: Duplicates) -> Iterator[str]:
    """What the terminal shows."""
    yield from _summary(found)
    for number, group in enumerate(found.groups[:_GROUPS], start=1):
        yield ""
        yield from _group_lines(number, group, found.against is not None)
    if len(found.groups) > _GROUPS:
        more = counted(len(found.groups) - _GROUPS, "more group is", "more groups are")
        yield f"\n{more} not shown; --csv FILE, --json FILE and --html FILE have them"


def _summary(found: Duplicates) -> Iterator[str]:
    images = counted(found.images, "image")
    yield printable(f"{images} of {found.output} looked at, threshold {found.threshold:g}")
    if found.against is not None:
        yield printable(f"{_images(found.all)} are in {found.against}, too")
        yield f"  {_images(found.exact)} by their bytes, {_images(found.near)} by their features"
        return
    for name, counts in (("exact", found.exact), ("near", found.near)):
        groups = counted(counts.groups, "group")
        yield f"  {name:<5} duplicates: {groups} of {_images(counts)}, {counts.surplus} besides one of each"
    if found.ungrouped:
        yield (
            f"  {counted(found.ungrouped, 'image')} more reach the threshold with some images of a group, "
            "but not with all"
        )


def _group_lines(number: int, group: DuplicateGroup, against: bool) -> Iterator[str]:
    images = group.images
    similar = f", least similarity {group.least_similarity:.4f}" if group.kind == "near" else ""
    why = f", keep: {group.why}" if group.why else ""
    yield f"{number}  {group.kind}, {counted(len(images), 'image')}{similar}{why}"
    for place, image in enumerate(images[:_IMAGES]):
        is_marked = image.index != images[0].index if against else place == 0
        mark = ("in" if against else "keep") if is_marked else ""
        size = f"{image.width}x{image.height}"
        yield printable(
            f"   {mark:<4}  {image.similarity:.4f}  {size:>11}  {human_bytes(image.size):>9}  {image.uri}"
        )
    if len(images) > _IMAGES:
        yield f"   and {len(images) - _IMAGES} more"


def _images(counts: Counts) -> str:
    return counted(counts.images, "image")


def _write_csv(path: Path, found: Duplicates) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(csv_rows(found))


def _write_json(path: Path, found: Duplicates) -> None:
    """Group by group: all of them might not fit into memory."""
    head = json.dumps(JSON_GENERATOR | json_head(found), indent=2)
    with path.open("w", encoding="utf-8") as file:
        file.write(head.removesuffix("\n}") + ',\n  "groups": [')
        before = "\n"
        for group in found.groups:
            file.write(f"{before}    {json.dumps(asdict(group))}")
            before = ",\n"
        file.write("\n  ]\n}\n")
