"""The frame of an HTML page that needs no other file, no network and no script; and text on it."""

from collections.abc import Sequence
from html import escape

from imgindex.io.asked_files import PAGE_MARK


def document(
    title: str, summary: Sequence[tuple[str, str]], content: str, *, more: str = "", style: str = ""
) -> str:
    """Returns a page of `content`, which is markup, below a title and a `summary` of names and values.

    `more` is text that stands below it, and `style` is CSS besides what all pages share.
    """
    facts = "".join(
        f"<div><dt>{marked_up(key)}</dt><dd>{marked_up(value)}</dd></div>" for key, value in summary
    )
    return _PAGE.format(
        mark=PAGE_MARK,
        title=escaped(title),
        facts=f"<dl>{facts}</dl>" if facts else "",
        style=_STYLE + style,
        content=content,
        more=f'<p class="none">{marked_up(more)}</p>' if more else "",
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markup of a table of texts, whose first row and first column are headings.

    On a narrow page each row is a block of its own, in which every cell carries its column's heading.
    """
    names = rows[0]
    words = [not any(row[column][:1] in _NUMBERS for row in rows[1:]) for column in range(len(names))]
    sides = [' class="words"' if column else "" for column in words]
    heads = "".join(
        f'<th scope="col"{side}>{marked_up(text)}</th>' for text, side in zip(names, sides, strict=True)
    )
    body = "".join(
        f'<tr><th scope="row" data-label="{escaped(names[0])}">{marked_up(row[0])}</th>'
        + "".join(
            f'<td data-label="{escaped(name)}"{side}>{marked_up(text)}</td>'
            for name, text, side in zip(names[1:], row[1:], sides[1:], strict=True)
        )
        + "</tr>"
        for row in rows[1:]
    )
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def marked_up(text: str) -> str:
    """Markup of any text."""
    # A name may be written right to left, which must not reorder what stands around it.
    return f"<bdi>{escaped(text)}</bdi>"


def escaped(text: str) -> str:
    """Any text as it may stand in markup or in an attribute."""
    # File names that are not UTF-8 carry lone surrogates, which no page can be written with.
    return escape(text.encode("utf-8", "replace").decode())


# How a figure begins. Columns without any are text, which stands at the left.
_NUMBERS = tuple("0123456789+-.")

_STYLE = """
:root { color-scheme: light dark; --page: #f6f5f2; --card: #fff; --ink: #1d2126; --soft: #68707a;
  --line: #e2e0da; --frame: #eeece6; --accent: #2f6f6a;
  --wrong: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --card: #1d2125; --ink: #e8e6e1;
  --soft: #9aa3ad; --line: #2e3439; --frame: #262b30; --accent: #74c2b8;
  --wrong: #ff8a80; } }
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
.name, .name span { display: flex; min-width: 0; max-width: 100%; white-space: pre; }
.name { flex-direction: column; }
.name bdi { flex: none; overflow: hidden; text-overflow: ellipsis; max-width: 100%; }
.name bdi:not(:last-child) { flex: 0 1 auto; min-width: 0; }
.wrong .frame { outline: 3px solid var(--wrong); outline-offset: -3px; }
.mark { display: block; color: var(--wrong); font-size: 12px; font-weight: 650; }
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
th:first-child, .words { text-align: left; }
td.words { white-space: normal; overflow-wrap: break-word; }
td:last-child { color: var(--soft); }
tbody tr:last-child > * { border-bottom: 0; }
.note { max-width: 92ch; margin: 0 0 16px; color: var(--soft); }
.none { margin: 0; padding: 16px; color: var(--soft); align-self: center; }
@media (max-width: 640px) {
  header, main { padding-inline: 14px; }
  .row { display: block; }
  .query { width: auto; border-inline-end: 0; border-bottom: 1px solid var(--line); }
  .query figure { display: flex; gap: 14px; align-items: center; }
  .query .frame { flex: none; width: 112px; }
  .query figcaption { flex: 1; min-width: 0; margin: 0; }
  ol { grid-template-columns: repeat(auto-fill, minmax(92px, 1fr)); gap: 14px 10px; padding: 14px; }
  figcaption { font-size: 12px; }
  .scores { overflow-x: visible; }
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  table, tbody { display: block; }
  tr { display: grid; grid-template-columns: repeat(auto-fill, minmax(88px, 1fr)); gap: 6px 12px;
    padding: 8px 0; border-bottom: 1px solid var(--line); }
  tbody tr:last-child { border-bottom: 0; }
  tbody tr > th, tbody tr > td { padding: 0 !important; border: 0; text-align: left; white-space: normal;
    overflow-wrap: anywhere; }
  tbody th { grid-column: 1 / -1; font-weight: 650 !important; }
  td.words { grid-column: 1 / -1; }
  td::before, tbody th::before { content: attr(data-label); display: block; color: var(--soft);
    font-size: 12px; font-weight: 400; }
  tr:has(> :nth-child(2):last-child) { grid-template-columns: 1fr auto; }
  tr:has(> :nth-child(2):last-child) > th { grid-column: auto; }
  tr:has(> :nth-child(2):last-child) > *::before { display: none; }
  td:has(bdi:empty), tbody th:has(bdi:empty) { display: none; }
}
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
{mark}
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
