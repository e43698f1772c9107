"""A single HTML page of queries and their neighbors, or of two images, with thumbnails inlined."""

import base64
import contextlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from imgindex.models.preprocess import DecodeError, decode
from imgindex.search import page_frame
from imgindex.search.page_frame import document, escaped, marked_up

THUMBNAIL_SIDE = 160


@dataclass(frozen=True)
class Tile:
    """One picture: its encoded file (None where it cannot be read) and what to say about it."""

    image: bytes | None
    caption: str
    detail: str = ""


@dataclass(frozen=True)
class Row:
    """A query and its neighbors, nearest first; where there are none, why."""

    query: Tile
    neighbors: Sequence[Tile]
    error: str = "No neighbors."


def render(title: str, summary: Sequence[tuple[str, str]], rows: Sequence[Row], more: str = "") -> str:
    """Return a page that needs no other file, no network and no script; `more` stands below the rows.

    Everything given is text, never markup. A picture that cannot be read is shown as a
    placeholder with its caption.
    """
    content = "\n".join(map(_row, rows)) or '<p class="none">Nothing to show.</p>'
    return document(title, summary, content, more=more)


def render_pair(
    title: str,
    summary: Sequence[tuple[str, str]],
    pictures: tuple[Tile, Tile],
    table: Sequence[Sequence[str]],
    more: str = "",
) -> str:
    """As `render`, a page of two pictures and of a `table`, whose first row and first column are headings."""
    tiles = "".join(map(_tile, pictures))
    content = (
        f'<section class="row pair"><div class="pictures">{tiles}</div><div class="scores">'
        f"{page_frame.table(table)}</div></section>"
    )
    return document(title, summary, content, more=more)


def thumbnail(image: bytes) -> str:
    """Return a data URI of a small copy of an encoded image, as a build sees it: upright, in sRGB, on white.

    Raises `DecodeError` for an image that it cannot read.
    """
    with warnings.catch_warnings():
        # What Pillow finds odd in a file that it does read is no news on this page.
        warnings.simplefilter("ignore")
        small = decode(image, THUMBNAIL_SIDE, truncated="accept").pixels
    return data_uri(Image.fromarray(small))


def data_uri(image: Image.Image) -> str:
    """A data URI of an RGB image, as JPEG."""
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=85, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def figure(source: str | None, caption: str, detail: str = "") -> str:
    """Markup of a picture, given as a data URI, with its caption; of a placeholder where there is none."""
    small = f"<small>{marked_up(detail)}</small>" if detail else ""
    # A path reads best when it is broken after a slash.
    name = f"<bdi>{escaped(caption).replace('/', '/<wbr>')}</bdi>"
    return (
        f'<figure title="{escaped(caption)}">{_picture(source, escaped(caption))}'
        f"<figcaption><span>{name}</span>{small}</figcaption></figure>"
    )


def query_row(query: str, neighbors: Sequence[str], error: str = "No neighbors.") -> str:
    """Markup of a query and its neighbors, each of them that of a `figure`."""
    items = "".join(f"<li>{neighbor}</li>" for neighbor in neighbors)
    found = f"<ol>{items}</ol>" if items else f'<p class="none">{marked_up(error)}</p>'
    return f'<section class="row"><div class="query">{query}</div>{found}</section>'


def _row(row: Row) -> str:
    return query_row(_tile(row.query), [*map(_tile, row.neighbors)], row.error)


def _tile(tile: Tile) -> str:
    source = None
    if tile.image is not None:
        with contextlib.suppress(DecodeError):
            source = thumbnail(tile.image)
    return figure(source, tile.caption, tile.detail)


def _picture(source: str | None, name: str) -> str:
    if source is not None:
        return f'<div class="frame"><img src="{source}" alt="{name}"></div>'
    return (
        f'<div class="frame missing" role="img" aria-label="{name} (cannot be shown)">'
        '<span aria-hidden="true">cannot be shown</span></div>'
    )
