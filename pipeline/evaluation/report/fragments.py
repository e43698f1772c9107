"""Pieces of the pages about a generation, and the style that they share."""

from collections.abc import Mapping, Sequence

from imgindex.search import page_frame
from imgindex.search.page_frame import escaped, marked_up


def section(title: str, *content: str) -> str:
    """Markup of a section of this title; `content` is markup."""
    return f'<section class="part"><h2>{escaped(title)}</h2>{"".join(content)}</section>'


def paragraph(text: str, command: str = "") -> str:
    """Markup of a paragraph of text, with a command behind it if there is one."""
    code = f" <code>{escaped(command)}</code>" if command else ""
    return f"<p>{marked_up(text)}{code}</p>"


def table(rows: Sequence[Sequence[str]], caption: str) -> str:
    """Markup of a table of texts, whose first row and first column are headings; it scrolls if it is wide."""
    label = escaped(caption)
    return f'<div class="wide" role="region" aria-label="{label}" tabindex="0">{page_frame.table(rows)}</div>'


def beside(*content: str) -> str:
    """Markup of charts or tables that stand beside each other where the page is wide enough."""
    return f'<div class="beside">{"".join(content)}</div>' if any(content) else ""


def broad(chart: str, caption: str) -> str:
    """Markup of a chart with a legend, which scrolls where the page is too narrow for it."""
    label = escaped(caption)
    return (
        f'<div class="broad" role="region" aria-label="{label}" tabindex="0">{chart}</div>' if chart else ""
    )


def details(summary: str, content: str) -> str:
    """Markup of what is shown when it is asked for."""
    return f"<details><summary>{escaped(summary)}</summary>{content}</details>"


def items(texts: Sequence[str]) -> str:
    """Markup of a list of texts; empty where there is none."""
    if not texts:
        return ""
    return f'<ul class="items">{"".join(f"<li>{marked_up(text)}</li>" for text in texts)}</ul>'


def terms(meanings: Mapping[str, str]) -> str:
    """Markup of a list of terms and what they mean."""
    rows = (
        f"<div><dt>{marked_up(term)}</dt><dd>{marked_up(text)}</dd></div>" for term, text in meanings.items()
    )
    return f'<dl class="terms">{"".join(rows)}</dl>'


STYLE = """
:root { --second: #b4582b; --h0: #a9a69c; --h1: #0072b2; --h2: #d55e00; --h3: #009e73; --h4: #cc79a7;
  --h5: #b98900; --h6: #46a6df; }
@media (prefers-color-scheme: dark) { :root { --second: #e8945f; --h0: #6d767e; --h1: #4a9ad8;
  --h2: #f0813a; --h3: #2bc497; --h4: #de9cc2; --h5: #e6b838; --h6: #9bd3f7; } }
.part { margin: 0 0 40px; }
h2 { margin: 0 0 6px; font-size: 19px; font-weight: 650; letter-spacing: -.01em; }
h3 { margin: 22px 0 10px; font-size: 15px; font-weight: 650; overflow-wrap: anywhere; }
.part > p { max-width: 92ch; margin: 0 0 14px; color: var(--soft); }
code { color: var(--ink); font-size: 13px; overflow-wrap: anywhere; }
.terms { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr));
  gap: 8px 28px; margin: 0 0 16px; font-size: 13px; }
.terms dt { display: inline; color: var(--ink); font-size: 13px; font-weight: 600; }
.terms dt::after { content: ": "; }
.terms dd { display: inline; color: var(--soft); font-weight: 400; }
.beside { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 16px; margin: 0 0 14px; }
.beside > .wide { flex: 1 1 auto; margin: 0; }
.beside > .wide:only-child { max-width: min(900px, 100%); }
.beside > .chart { flex: 1 1 300px; }
.broad { flex: 1 1 420px; min-width: 0; max-width: 640px; overflow-x: auto; }
.broad .chart { width: 100%; min-width: 480px; }
.wide { min-width: min(340px, 100%); max-width: 100%; overflow-x: auto;
  margin: 0 0 14px; padding: 4px 10px; background: var(--card);
  border: 1px solid var(--line); border-radius: 12px; }
.wide td:last-child { color: inherit; }
.wide th { font-weight: 500; }
.wide td, .wide th + th { padding-inline-start: 18px; }
.wide bdi { unicode-bidi: isolate; }
.chart { min-width: 0; max-width: 640px; height: auto; padding: 12px; background: var(--card);
  border: 1px solid var(--line); border-radius: 12px; }
.items { max-width: 92ch; margin: 0 0 14px; padding-inline-start: 20px; }
.items li { margin: 0 0 4px; overflow-wrap: anywhere; }
details { margin: 0 0 14px; }
summary { color: var(--accent); cursor: pointer; margin: 0 0 8px; }
.couples { display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fill, minmax(min(270px, 100%), 1fr)); }
.couple { display: grid; grid-template-columns: 1fr 1fr; gap: 10px; padding: 12px; background: var(--card);
  border: 1px solid var(--line); border-radius: 12px; }
.map { display: block; width: 100%; height: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; }
.map image { opacity: .75; }
.map path { stroke: var(--card); stroke-width: 1; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 0 0 10px; padding: 0; list-style: none;
  font-size: 13px; }
.legend svg { width: 12px; height: 12px; margin-inline-end: 6px; vertical-align: -1px; }
.h0 { fill: var(--h0); } .h1 { fill: var(--h1); } .h2 { fill: var(--h2); } .h3 { fill: var(--h3); }
.h4 { fill: var(--h4); } .h5 { fill: var(--h5); } .h6 { fill: var(--h6); }
"""
