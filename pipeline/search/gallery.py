"""A single HTML page of queries and their neighbours, or of two images, with thumbnails inlined."""

import base64
import contextlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

from imgindex.models.preprocess import DecodeError, decode

THUMBNAIL_SIDE = 160


@dataclass(frozen=True)
class Tile:
    """One picture: its encoded file (None where it cannot be read) and what to say about it."""

    image: bytes | None
    caption: str
    detail: str = ""


@dataclass(frozen=True)
class Row:
    """A query and its neighbours, nearest first; where there are none, why."""

    query: Tile
    neighbors: Sequence[Tile]
    error: str = "No neighbours."


def render(title: str, summary: Sequence[tuple[str, str]], rows: Sequence[Row], more: str = "") -> str:
    """Return a page that needs no other file, no network and no script; `more` stands below the rows.

    Everything given is text, never markup. A picture that cannot be read is shown as a
    placeholder with its caption.
    """
    content = "\n".join(map(_row, rows)) or '<p class="none">Nothing to show.</p>'
    return _page(title, summary, content, more)


def render_pair(
    title: str,
    summary: Sequence[tuple[str, str]],
    pictures: tuple[Tile, Tile],
    table: Sequence[Sequence[str]],
    more: str = "",
) -> str:
    """As `render`, a page of two pictures and of a `table`, whose first row and first column are headings."""
    tiles = "".join(map(_tile, pictures))
    heads = "".join(f'<th scope="col">{_text(text)}</th>' for text in table[0])
    rows = "".join(
        f'<tr><th scope="row">{_text(first)}</th>{"".join(f"<td>{_text(text)}</td>" for text in rest)}</tr>'
        for first, *rest in table[1:]
    )
    content = (
        f'<section class="row pair"><div class="pictures">{tiles}</div><div class="scores"><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div></section>"
    )
    return _page(title, summary, content, more)


def _page(title: str, summary: Sequence[tuple[str, str]], content: str, more: str) -> str:
    facts = "".join(f"<div><dt>{_text(key)}</dt><dd>{_text(value)}</dd></div>" for key, value in summary)
    return _PAGE.format(
        title=_escaped(title),
        facts=f"<dl>{facts}</dl>" if facts else "",
        style=_STYLE,
        content=content,
        more=f'<p class="none">{_text(more)}</p>' if more else "",
    )


def thumbnail(image: bytes) -> str:
    """Return a data URI of a small copy of an encoded image, as a build sees it: upright, in sRGB, on white.

    Raises `DecodeError` for an image that it cannot read.
    """
    with warnings.catch_warnings():
        # What Pillow finds odd in a file that it does read is no news on this page.
        warnings.simplefilter("ignore")
        small = decode(image, THUMBNAIL_SIDE, truncated="accept").pixels
    encoded = io.BytesIO()
    Image.fromarray(small).save(encoded, "JPEG", quality=85, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _row(row: Row) -> str:
    neighbors = "".join(f"<li>{_tile(tile)}</li>" for tile in row.neighbors)
    found = f"<ol>{neighbors}</ol>" if neighbors else f'<p class="none">{_text(row.error)}</p>'
    return f'<section class="row"><div class="query">{_tile(row.query)}</div>{found}</section>'


def _tile(tile: Tile) -> str:
    detail = f"<small>{_text(tile.detail)}</small>" if tile.detail else ""
    # A path reads best when it is broken after a slash.
    caption = f"<bdi>{_escaped(tile.caption).replace('/', '/<wbr>')}</bdi>"
    return (
        f'<figure title="{_escaped(tile.caption)}">{_picture(tile)}'
        f"<figcaption><span>{caption}</span>{detail}</figcaption></figure>"
    )


def _picture(tile: Tile) -> str:
    name = _escaped(tile.caption)
    if tile.image is not None:
        with contextlib.suppress(DecodeError):
            return f'<div class="frame"><img src="{thumbnail(tile.image)}" alt="{name}"></div>'
    return (
        f'<div class="frame missing" role="img" aria-label="{name} (cannot be shown)">'
        '<span aria-hidden="true">cannot be shown</span></div>'
    )


def _text(text: str) -> str:
    # A name may be written right to left, which must not reorder what stands around it.
    return f"<bdi>{_escaped(text)}</bdi>"


def _escaped(text: str) -> str:
    # File names that are not UTF-8 carry lone surrogates, which no page can be written with.
    return escape(text.encode("utf-8", "replace").decode())


_STYLE = """
:root { color-scheme: light dark; --page: #f6f5f2; --card: #fff; --ink: #1d2126; --soft: #68707a;
  --line: #e2e0da; --frame: #eeece6; --accent: #2f6f6a; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --card: #1d2125; --ink: #e8e6e1;
  --soft: #9aa3ad; --line: #2e3439; --frame: #262b30; --accent: #74c2b8; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
header, main { max-width: 1240px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 36px; }
h1 { margin: 0 0 18px; font-size: 26px; font-weight: 650; letter-spacing: -.015em;
  overflow-wrap: anywhere; }
dl { display: flex; flex-wrap: wrap; gap: 12px 36px; margin: 0 0 24px; }
dl div { min-width: 0; }
dt { color: var(--soft); font-size: 12px; }
dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
main { padding-bottom: 48px; }
.row { display: flex; margin: 0 0 16px; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; overflow: hidden; }
.query { flex: none; width: 188px; padding: 16px; border-inline-end: 1px solid var(--line);
  background: color-mix(in srgb, var(--accent) 9%, var(--card)); }
.query::before, ol::before { content: "Query"; display: block; margin-bottom: 8px;
  color: var(--accent); font-size: 12px; font-weight: 650; }
ol::before { content: "Nearest"; grid-column: 1 / -1; margin-bottom: -8px; color: var(--soft); }
ol { flex: 1; display: grid; grid-template-columns: repeat(auto-fill, minmax(100px, 1fr));
  gap: 16px 14px; align-content: start; min-width: 0; margin: 0; padding: 16px;
  list-style: none; }
li { min-width: 0; }
figure { margin: 0; min-width: 0; }
.frame { display: flex; align-items: center; justify-content: center; aspect-ratio: 1;
  border-radius: 8px; overflow: hidden; background: var(--frame); }
.frame img { display: block; width: 100%; height: 100%; object-fit: contain; }
.missing { border: 1px dashed var(--soft); color: var(--soft); font-size: 12px; padding: 8px;
  text-align: center; }
figcaption { margin-top: 6px; font-size: 13px; line-height: 1.35; }
figcaption span { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2;
  overflow: hidden; overflow-wrap: anywhere; }
small { display: block; color: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
.pair { flex-wrap: wrap; }
.pictures { display: flex; flex: 1 1 260px; gap: 16px; padding: 16px; }
.pictures figure { flex: 1; }
.pictures .frame { max-width: 240px; }
.scores { flex: 2 1 420px; min-width: 0; padding: 16px; overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 8px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
thead th { color: var(--soft); font-size: 12px; font-weight: 400; vertical-align: bottom;
  white-space: normal; }
th:first-child { text-align: left; }
td:last-child { color: var(--soft); }
tbody tr:last-child > * { border-bottom: 0; }
.none { margin: 0; padding: 16px; color: var(--soft); align-self: center; }
@media (max-width: 640px) {
  header, main { padding-inline: 14px; }
  .row { display: block; }
  .query { width: auto; border-inline-end: 0; border-bottom: 1px solid var(--line); }
  .query figure { display: flex; gap: 14px; align-items: center; }
  .query .frame { flex: none; width: 112px; }
  .query figcaption { flex: 1; min-width: 0; margin: 0; }
  ol { grid-template-columns: repeat(auto-fill, minmax(92px, 1fr)); gap: 14px 10px; padding: 14px; }
}
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1 dir="auto">{title}</h1>{facts}</header>
<main>
{content}
{more}
</main>
</body>
</html>
"""
