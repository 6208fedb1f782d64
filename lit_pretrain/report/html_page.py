"""HTML pages of reports: one file that needs nothing else, in light and in dark."""

from collections.abc import Sequence
from html import escape


def html_page(title: str, body: str) -> str:
    """Lay out a page.

    Args:
        title: Plain text.
        body: HTML.
    """
    return (
        f'<!doctype html>\n<html lang="en">\n<title>{escape(title)}</title>{_HEAD}'
        f"<h1>{escape(title)}</h1>\n{body}"
    )


def html_table(table: Sequence[Sequence[str]]) -> str:
    """Lay out a table of plain text; its first row is the head."""
    head, *rows = table
    return (
        f"<table><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>"
        + "".join(
            f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows
        )
        + "</table>"
    )


_HEAD = """
<meta charset="utf-8"><meta name="viewport" content="width=device-width">
<style>
:root { color-scheme: light dark; --text: #1b1b1b; --quiet: #666; --grid: #e3e3e3; --page: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --quiet: #a0a0a0; --grid: #3a3a3a; --page: #1a1a1a; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page);
  max-width: 1440px; margin: 1.5rem auto; padding: 0 1.5rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(400px, 1fr));
  gap: 1.2rem; }
.tables { display: flex; flex-wrap: wrap; gap: 1.5rem 3rem; margin: 1.5rem 0; }
figure { margin: 0; }
figure > svg { width: 100%; }
figcaption { font-size: 13px; color: var(--quiet); display: flex; flex-wrap: wrap; gap: 0 1.1rem;
  padding-left: 11%; }
figcaption b { color: var(--text); }
svg text { font-size: 12px; fill: var(--quiet); }
svg text.title { font-size: 14px; font-weight: 600; fill: var(--text); }
svg text.x { text-anchor: middle; }
svg text.y { text-anchor: end; }
.grid { stroke: var(--grid); }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.band { fill: #D55E00; opacity: 0.15; }
.key { width: 22px; height: 10px; margin-right: 5px; }
table { border-collapse: collapse; align-self: flex-start; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.2rem 1.4rem 0.2rem 0; border-bottom: 1px solid var(--grid);
  vertical-align: top; }
pre { background: color-mix(in srgb, var(--grid) 40%, transparent); padding: 0.7rem 1rem;
  overflow-x: auto; white-space: pre-wrap; }
</style>
"""
