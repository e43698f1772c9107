"""Search results, or a comparison, as an HTML page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from imgindex.errors import OutputError
from imgindex.generations.manifest import Manifest
from imgindex.inputs.tar_members import read_image
from imgindex.io.asked_files import write_text
from imgindex.runtime.standard_streams import quiet_libraries
from imgindex.search import gallery
from imgindex.search.comparison import ComparedImage, Comparison, comparison_table, what_ranks
from imgindex.search.neighbors import Neighbor
from imgindex.search.results import Result, describe_error
from imgindex.text import counted
from imgindex.uris import name_of


class Searched(Protocol):
    """What has been searched."""

    @property
    def facts(self) -> Manifest:
        """The recipe of its vectors, and where its images lie."""

    @property
    def generation(self) -> str:
        """The name of the generation."""

    def __len__(self) -> int:
        """How many images it holds."""

    @property
    def place(self) -> str:
        """Where it is, for people."""

    def image_path(self, uri: str) -> str:
        """Where an image lay when the index was built. Raises OutputError."""


def result_page(index: Searched, results: Sequence[Result], hidden: int = 0) -> str:
    """A self-contained HTML page of queries, which are paths, and their neighbors as thumbnails.

    It says that `hidden` more queries are not on it.
    """
    manifest = index.facts
    facts = [
        ("Index", index.place),
        ("Generation", index.generation),
        ("Images", f"{len(index):,}"),
        ("Backbone", manifest.spec.backbone),
        ("Vectors", f"{counted(manifest.dims, 'dimension')}, {manifest.metric}"),
    ]
    rows = [
        gallery.Row(
            gallery.Tile(
                _image(index.facts, name_of(result.query)),
                result.query.rpartition("/")[2],
                "query" if result.known is None else f"query, indexed as {result.known}",
            ),
            [_tile(index, neighbor) for neighbor in result.neighbors],
            *([describe_error(result.error)] if result.error else []),
        )
        for result in results
    ]
    more = f"{counted(hidden, 'more query is', 'more queries are')} not shown" if hidden else ""
    return gallery.render("Nearest images", facts, rows, more, _note(manifest, rows))


def _note(manifest: Manifest, rows: Sequence[gallery.Row]) -> str:
    """What cosines mean; and if indexed images are not where they were, where the page looked for them."""
    pictures = [tile.image for row in rows for tile in row.neighbors]
    if not pictures:
        return ""
    note = "A cosine of 1 means that two vectors point the same way, 0 that they have nothing in common."
    missing = pictures.count(None)
    if missing:
        note += (
            f" {missing:,} of {counted(len(pictures), 'neighbor')} cannot be shown: the images could not be "
            f"read in {manifest.input_root}; if they have been moved, move them back or build again from "
            "where they are now."
        )
    return note


def write_page(path: Path, index: Searched, results: Sequence[Result], hidden: int = 0) -> None:
    """Writes `result_page` to a file. Raises OutputError."""
    with quiet_libraries():
        page = result_page(index, results, hidden)
    write_text(path, page)


def comparison_page(root: str, manifest: Manifest, comparison: Comparison) -> str:
    """A self-contained HTML page of two images, by the index at `root`, and their similarity."""
    facts = [
        ("Index", root),
        ("Generation", manifest.generation),
        ("Backbone", manifest.spec.backbone),
        ("Vectors", counted(manifest.dims, "dimension")),
    ]
    pictures = (_compared(manifest, "a", comparison.a), _compared(manifest, "b", comparison.b))
    more = (
        f"{what_ranks(manifest.metric)} Pixels are the RGB values of both images at one size. Features are "
        "what the backbone gives for them. Vectors are the features as the index holds them. The last column "
        "has what two equal images would get."
    )
    return gallery.render_pair(
        "Similarity of two images", facts, pictures, comparison_table(comparison), more
    )


def write_comparison(path: Path, root: str, manifest: Manifest, comparison: Comparison) -> None:
    """Writes `comparison_page` to a file. Raises OutputError."""
    with quiet_libraries():
        page = comparison_page(root, manifest, comparison)
    write_text(path, page)


def _compared(manifest: Manifest, letter: str, image: ComparedImage) -> gallery.Tile:
    file = None if image.path is None else _image(manifest, name_of(image.path))
    return gallery.Tile(file, image.name, letter)


def _tile(index: Searched, neighbor: Neighbor) -> gallery.Tile:
    details = [str(neighbor.rank)]
    if index.facts.metric != "angular":
        details.append(f"distance {neighbor.distance:.4f}")
    details.append(f"cosine {neighbor.similarity:.3f}")
    if neighbor.copies:
        details.append("1 copy" if neighbor.copies == 1 else f"{neighbor.copies:,} copies")
    try:
        image = _image(index.facts, index.image_path(neighbor.uri))
    except OutputError:
        image = None
    return gallery.Tile(image, neighbor.uri, " · ".join(details))


def _image(manifest: Manifest, path: str) -> bytes | None:
    """The file of an image; None, of which the page says that it cannot be shown, where there is none."""
    try:
        return read_image(path, manifest.settings.images.max_bytes)
    except (OSError, ValueError):  # a name that no filesystem takes is a ValueError
        return None
