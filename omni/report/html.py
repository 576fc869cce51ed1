"""The report's building blocks in HTML: the page with its style, charts and tables.

A page is one file without scripts. It loads nothing from the network, which its security policy enforces.
All text is escaped.
"""

from html import escape

from omni.report.run_data import Curve

STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1c1e24, #e8e8ea); --soft: light-dark(#5a5e68, #a4a8b2);
  --paper: light-dark(#fafaf8, #16181d); --card: light-dark(#fff, #1e2128);
  --line: light-dark(#d8d8d4, #383c46); --right: light-dark(#14703a, #5fd08a);
  --wrong: light-dark(#b42828, #ff8f8f); --link: light-dark(#1f56b5, #8ab4ff);
  --c0: light-dark(#2a6fdb, #7aa7ff); --c1: light-dark(#c25a10, #ff9d5c); --c2: light-dark(#1d7f48, #5fd08a);
  --c3: light-dark(#8d35ad, #d58af0); --c4: light-dark(#b42828, #ff8f8f);
  --c5: light-dark(#5f6b6d, #a9b5b7); }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  margin: 0 auto; max-width: 76rem; padding: 1rem; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.6rem; } h2 { margin: 2rem 0 .5rem; font-size: 1.25rem; }
h3 { margin: 1rem 0 .5rem; font-size: 1rem; } p { margin: .25rem 0; } .soft { color: var(--soft); }
a { color: var(--link); } :focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1rem; list-style: none; padding: 0; margin: .5rem 0; }
.skip { position: absolute; left: -99rem; } .skip:focus { position: static; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .75rem; text-align: right;
  white-space: nowrap; } th:first-child, td:first-child { text-align: left; }
td.text { text-align: left; white-space: normal; min-width: 12rem; }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 14rem), 1fr)); }
figure, article { margin: 0; border: 1px solid var(--line); border-radius: .5rem; padding: .75rem;
  background: var(--card); min-width: 0; }
svg { width: 100%; height: auto; display: block; } audio { width: 100%; }
article p { white-space: pre-line; max-height: 16rem; overflow: auto; }
article img { max-width: 100%; width: 160px; height: auto; border-radius: .25rem; }
.key { display: inline-block; margin-right: .75rem; } .key::before { content: ""; display: inline-block;
  width: .9em; height: .25em; margin-right: .3em; vertical-align: middle; background: var(--c); }
.right { color: var(--right); } .wrong { color: var(--wrong); }
dl { display: grid; gap: .5rem; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); }
dt { color: var(--soft); font-size: .85rem; } dd { margin: 0; font-size: 1.1rem; }
summary { cursor: pointer; }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"
COLORS = 6
WIDTH, HEIGHT, LEFT, BOTTOM = 360, 190, 52, 22  # of a chart and its margins, in SVG units
POINTS = 240  # a longer curve is cut into at most this many pieces, and their means are drawn


def format_metric(name: str, value: float | None) -> str:
    """A metric as text: losses as they are, all others in percent."""
    if value is None:
        return "–"
    return f"{value:.3f}" if "loss" in name else f"{value:.1%}"


def thin(curve: Curve) -> Curve:
    """At most POINTS points: the means of equally long pieces of the curve."""
    if len(curve) <= POINTS:
        return curve
    size = -(-len(curve) // POINTS)
    parts = [curve[i:i + size] for i in range(0, len(curve), size)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


def tick_label(value: float, percent: bool) -> str:
    """An axis label in few characters."""
    if percent:
        return f"{value:.0%}" if value >= 0.095 or value == 0 else f"{value:.1%}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) >= 0.01 else f"{value:.2g}"


def chart(title: str, curves: dict[str, Curve], dashed: dict[str, Curve] | None = None,
          percent: bool = False) -> str:
    """A line chart as inline SVG; "" if there is no point.

    A `dashed` curve has the colour of the solid curve with the same name. With `percent`, the y axis starts
    at 0 and is labelled in percent.
    """
    every = [point for group in (curves, dashed or {}) for curve in group.values() for point in curve]
    if not every:
        return ""
    (x0, y0), (x1, y1) = (tuple(f(p[i] for p in every) for i in (0, 1)) for f in (min, max))
    y0, y1 = (0.0, max(y1, 0.01)) if percent else (y0, y1)
    x1, y1 = x1 if x1 > x0 else x0 + max(1, abs(x0) * 1e-9), y1 if y1 > y0 else y0 + max(1e-9, abs(y0) * 0.1)

    def place(x: float, y: float) -> tuple[float, float]:
        return (round(LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - 10), 1),
                round(HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - BOTTOM - 12), 1))

    color = {name: f"var(--c{i % COLORS})" for i, name in enumerate(curves)}
    lines = []
    for group, style in ((curves, ""), (dashed or {}, ' stroke-dasharray="4 4"')):
        for name, curve in group.items():
            points = [place(*p) for p in thin(curve)]
            lines.append(f'<polyline fill="none" style="stroke:{color[name]}" stroke-width="2"{style} '
                         f'points="{" ".join(f"{x},{y}" for x, y in points)}"/>')
            dots = points if len(points) <= 20 else []
            lines += [f'<circle r="2.5" style="fill:{color[name]}" cx="{x}" cy="{y}"/>' for x, y in dots]
    grid = ""
    for value in (y0, (y0 + y1) / 2, y1):
        y = place(x0, value)[1]
        grid += (f'<path d="M{LEFT} {y}H{WIDTH - 10}" style="stroke:var(--line)"/><text x="{LEFT - 5}" '
                 f'y="{y + 4}" text-anchor="end">{tick_label(value, percent)}</text>')
    for x, anchor in ((x0, "start"), (x1, "end")):
        grid += f'<text x="{place(x, y0)[0]}" y="{HEIGHT - 5}" text-anchor="{anchor}">{x:g}</text>'
    keys = "".join(f'<span class="key" style="--c:{color[name]}">{escape(name)}</span>' for name in curves)
    note = '<span class="soft">dashed: media swapped</span>' if any((dashed or {}).values()) else ""
    return (f'<figure><figcaption><b>{escape(title)}</b><br>{keys}{note}</figcaption>'
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}" font-size="11" '
            f'fill="currentColor">{grid}{"".join(lines)}</svg></figure>')


class HtmlCell(str):
    """A table cell as HTML, with its <td>. Its text must already be escaped."""


def table(label: str, head: list[str], rows: list[list[str]]) -> str:
    """A table that scrolls sideways if it is too wide. Cells are plain text or `HtmlCell`s."""
    def cell(content: str) -> str:
        return content if isinstance(content, HtmlCell) else f"<td>{escape(content)}</td>"

    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return (f'<div class="wide" role="region" aria-label="{escape(label)}" tabindex="0"><table>'
            f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>")


def definitions(pairs: list[tuple[str, str]]) -> str:
    """A grid of names with their values."""
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)
    return f"<dl>{items}</dl>"


def document(title: str, intro: str, sections: list[tuple[str, str]]) -> str:
    """The whole page: title, introduction, and a section for each (heading, content) that is not empty."""
    numbered = [(f"s{i}", name, content) for i, (name, content) in enumerate(sections) if content]
    links = "".join(f'<li><a href="#{anchor}">{escape(name)}</a></li>' for anchor, name, _ in numbered)
    parts = "".join(f'<section id="{anchor}"><h2>{escape(name)}</h2>{content}</section>'
                    for anchor, name, content in numbered)
    return ('<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
            f'<a class="skip" href="#main">Skip to the content</a><header><h1>{escape(title)}</h1>{intro}'
            f'<nav aria-label="Sections"><ul>{links}</ul></nav></header><main id="main">{parts}</main>'
            "</body></html>\n")
