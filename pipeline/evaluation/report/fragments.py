"""Pieces of the pages about a generation, and the style that they share."""

from collections.abc import Sequence

from imgindex.search import page_frame
from imgindex.search.page_frame import escaped, marked_up


def section(title: str, *content: str) -> str:
    """Markup of a section of this title; `content` is markup."""
    return f'<section class="part"><h2>{escaped(title)}</h2>{"".join(content)}</section>'


def paragraph(text: str) -> str:
    """Markup of a paragraph of text."""
    return f"<p>{marked_up(text)}</p>"


def table(rows: Sequence[Sequence[str]], caption: str) -> str:
    """Markup of a table of texts, whose first row and first column are headings; it scrolls if it is wide."""
    label = escaped(caption)
    return f'<div class="wide" role="region" aria-label="{label}" tabindex="0">{page_frame.table(rows)}</div>'


def details(summary: str, content: str) -> str:
    """Markup of what is shown when it is asked for."""
    return f"<details><summary>{escaped(summary)}</summary>{content}</details>"


def items(texts: Sequence[str]) -> str:
    """Markup of a list of texts."""
    return f'<ul class="items">{"".join(f"<li>{marked_up(text)}</li>" for text in texts)}</ul>'


STYLE = """
:root { --second: #b4582b; --h0: #a9a69c; --h1: #2f6f6a; --h2: #c0622f; --h3: #6a5acd; --h4: #b3882b;
  --h5: #b2447a; --h6: #3f7fbf; --h7: #5b8c3a; --h8: #8a5a44; }
@media (prefers-color-scheme: dark) { :root { --second: #e8945f; --h0: #5d666e; --h1: #74c2b8;
  --h2: #e8945f; --h3: #a99bf0; --h4: #dcb75e; --h5: #e583b0; --h6: #7fb4e8; --h7: #9ccb78; --h8: #c79a84; } }
.part { margin: 0 0 40px; }
h2 { margin: 0 0 6px; font-size: 19px; font-weight: 650; letter-spacing: -.01em; }
h3 { margin: 22px 0 10px; font-size: 15px; font-weight: 650; overflow-wrap: anywhere; }
.part > p { max-width: 78ch; margin: 0 0 14px; color: var(--soft); }
.wide { width: fit-content; min-width: min(420px, 100%); max-width: 100%; overflow-x: auto;
  margin: 0 0 14px; padding: 4px 10px; background: var(--card);
  border: 1px solid var(--line); border-radius: 12px; }
.wide td:last-child { color: inherit; }
.wide th { font-weight: 500; }
.wide th:first-child { white-space: normal; }
.wide td, .wide th + th { padding-inline-start: 22px; }
.wide bdi { unicode-bidi: isolate; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr)); gap: 16px;
  margin: 0 0 14px; }
.chart { width: 100%; max-width: 480px; height: auto; padding: 12px; background: var(--card);
  border: 1px solid var(--line); border-radius: 12px; }
.items { max-width: 78ch; margin: 0 0 14px; padding-inline-start: 20px; }
.items li { margin: 0 0 4px; overflow-wrap: anywhere; }
details { margin: 0 0 14px; }
summary { color: var(--accent); cursor: pointer; margin: 0 0 8px; }
.couples { display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fill, minmax(min(270px, 100%), 1fr)); }
.couple { display: grid; grid-template-columns: 1fr 1fr; gap: 10px; padding: 12px; background: var(--card);
  border: 1px solid var(--line); border-radius: 12px; }
.map { display: block; width: 100%; height: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; }
.map circle { opacity: .8; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 0 0 10px; padding: 0; list-style: none;
  font-size: 13px; }
.legend svg { width: 10px; height: 10px; margin-inline-end: 6px; }
.h0 { fill: var(--h0); } .h1 { fill: var(--h1); } .h2 { fill: var(--h2); } .h3 { fill: var(--h3); }
.h4 { fill: var(--h4); } .h5 { fill: var(--h5); } .h6 { fill: var(--h6); } .h7 { fill: var(--h7); }
.h8 { fill: var(--h8); }
"""
