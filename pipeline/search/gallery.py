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
# Characters at the end of a name that are shown however narrow the page is.
_KEPT = 10


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


def render(
    title: str, summary: Sequence[tuple[str, str]], rows: Sequence[Row], more: str = "", note: str = ""
) -> str:
    """Return a page that needs no other file, no network and no script.

    The text `note` stands above the rows, and `more` below them.

    Everything given is text, never markup. A picture that cannot be read is shown as a
    placeholder with its caption.
    """
    above = f'<p class="note">{marked_up(note)}</p>' if note else ""
    content = above + "\n".join(map(_row, rows)) or '<p class="none">Nothing to show.</p>'
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


def figure(
    source: str | None, caption: str, detail: str = "", *, wrong: str = "", framed: bool = True
) -> str:
    """Markup of a picture, given as a data URI, with its caption; of a placeholder where there is none.

    `wrong` are the words that mark an answer as wrong. Without a frame the caption stands alone.
    """
    picture = _picture(source, escaped(caption)) if framed else ""
    mark = f'<b class="mark">{escaped(wrong)}</b>' if wrong else ""
    small = f"<small>{marked_up(detail)}</small>" if detail else ""
    kind = ' class="wrong"' if wrong else ""
    return (
        f'<figure title="{escaped(caption)}"{kind}>{picture}'
        f'<figcaption><span class="name">{_name(caption)}</span>{mark}{small}</figcaption></figure>'
    )


def _name(path: str) -> str:
    """Markup of a path: its folder above its file. Each is cut in its middle if the page is too narrow."""
    folder, slash, file = path.rpartition("/")
    return "".join(f"<span>{_line(part)}</span>" for part in (folder + slash, file) if part)


def _line(text: str) -> str:
    end = len(text) - _KEPT
    # Only text of one direction, whose characters stand alone, may be cut anywhere.
    parts = (text[:end], text[end:]) if text.isascii() and end > 0 else (text,)
    return "".join(f"<bdi>{escaped(part)}</bdi>" for part in parts)


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
