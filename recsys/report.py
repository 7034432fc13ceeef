"""Report pages: one HTML file that needs nothing from outside, for a browser and for the dashboard's iframe.

A page is made of sections, each made by one function of this module, which escapes its text. Charts are
static inline SVG, with neither script nor font nor style sheet from elsewhere; equal data gives equal bytes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

import jinja2
import numpy as np
import pygal
from pygal.style import Style

MAX_PAGE_BYTES = 1_000_000  # The dashboard loads the whole page into an iframe's srcdoc.
MAX_POINTS = 500  # More than a chart has pixels to tell apart.
MAX_DOTS = 50
MAX_WHOLE_TICKS = 10

# Okabe and Ito, tell-apart for colour-blind readers.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

_CSS = """
body { max-width: 60rem; margin: 1.5rem auto; padding: 0 1rem; color: #1f2328; background: #fff;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
h1 { font-size: 1.5rem; font-weight: 600; margin: 0 0 1rem; }
h2, summary { font-size: 1rem; font-weight: 600; margin: 1.5rem 0 .4rem; }
pre { overflow-x: auto; }
figure { margin: 1.5rem 0; overflow-x: auto; }
figcaption { font-weight: 600; margin-bottom: .4rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #e3e6ea;
  text-align: left; vertical-align: top; overflow-wrap: anywhere; }
th { font-weight: 500; color: #57606a; white-space: nowrap; }
.number { text-align: right; white-space: nowrap; }
svg { display: block; max-width: 100%; height: auto; font-size: 12px; fill: #1f2328; }
svg .background { fill: none; }
svg .axis text, svg .legend text { fill: #57606a; stroke: none; }
svg .axis.x text, svg .title, svg .no_data { text-anchor: middle; }
svg .axis.x text[transform] { text-anchor: start; }
svg .axis.y text { text-anchor: end; }
svg .axis path { fill: none; stroke: #e3e6ea; }
svg .axis.x .guide { stroke: none; }
svg .nofill { fill: none; stroke-width: 2; }
svg .text-overlay text { fill: #1f2328; stroke: none; transform: translateY(-5px); }
""" + "\n".join(
    f"svg .color-{place} {{ stroke: {colour}; fill: {colour}; }}" for place, colour in enumerate(_COLOURS)
)

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>{{ css | safe }}</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for section in sections %}
{{ section | safe }}
{% endfor %}
</body>
</html>
"""

_TABLE = """\
{% macro cells(tag, row) %}
{% for cell in row %}
<{{ tag }}{% if loop.index0 in numeric %} class="number"{% endif %}>{{ cell }}</{{ tag }}>
{% endfor %}
{% endmacro %}
<figure>
{% if caption %}
<figcaption>{{ caption }}</figcaption>
{% endif %}
<table>
<thead><tr>
{{ cells("th", headers) }}</tr></thead>
<tbody>
{% for row in rows %}
<tr>
{{ cells("td", row) }}</tr>
{% endfor %}
</tbody>
</table>
</figure>"""

_FACTS = """\
<figure>
{% if caption %}
<figcaption>{{ caption }}</figcaption>
{% endif %}
<table>
{% for name, value in rows %}
<tr><th scope="row">{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}
</table>
</figure>"""

_CHART = """\
<figure>
<figcaption>{{ title }}</figcaption>
{{ svg | safe }}
</figure>"""

_JINJA = jinja2.Environment(
    autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
)


def page(title: str, *sections: str, max_bytes: int = MAX_PAGE_BYTES) -> str:
    """A whole HTML document.

    Args:
        sections: HTML, as the other functions of this module return it.
        max_bytes: largest page allowed; the default is what the dashboard shows without trouble.
    Raises:
        ValueError: the page is larger than ``max_bytes``.
    """
    html = _fill(_PAGE, title=title, css=_CSS, sections=sections)
    if len(html.encode()) > max_bytes:
        raise ValueError(
            f"report page {title!r} has {len(html.encode()):,} bytes, allowed: {max_bytes:,}; show fewer rows"
        )
    return html


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return _fill("<p>{{ text }}</p>", text=text)


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> str:
    """A table; columns that hold nothing but numbers are right-aligned.

    Args:
        rows: as many cells as ``headers``, of any type: integers are shown with thousands separators,
            other numbers with five significant digits, ``None`` as a dash.
    """
    rows = [list(row) for row in rows]
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"table {caption!r}: row {row} does not fit the headers {list(headers)}")
    numeric = {place for place, column in enumerate(zip(*rows, strict=True)) if all(map(_is_number, column))}
    return _fill(_TABLE, headers=headers, rows=_texts(rows), caption=caption, numeric=numeric)


def facts(mapping: Mapping[str, Any], caption: str = "") -> str:
    """Names and values in two columns; values are shown as in :func:`table`."""
    return _fill(_FACTS, rows=_texts(mapping.items()), caption=caption)


def line_chart(
    title: str, series: Mapping[str, Sequence[tuple[float, float]]], x_title: str, y_title: str
) -> str:
    """Lines through points.

    Args:
        series: legend to (x, y) points in drawing order. Points that are not finite are left out; a longer
            series is thinned to :data:`MAX_POINTS`, evenly and with both ends.
    """
    lines = {name: _thinned(points) for name, points in series.items()}
    chart = pygal.XY(
        **_options(x_title, y_title),
        x_value_formatter=_text,
        show_legend=True,
        legend_at_bottom=True,
        legend_at_bottom_columns=max(1, min(len(lines), 4)),
        show_dots=max(map(len, lines.values()), default=0) <= MAX_DOTS,
        dots_size=2.5,
    )
    for name, points in lines.items():
        chart.add(name, points)
    at = [x for points in lines.values() for x, _ in points]
    if at and all(map(float.is_integer, at)) and max(at) - min(at) <= MAX_WHOLE_TICKS:
        chart.x_labels = range(int(min(at)), int(max(at)) + 1)  # There is no epoch 1.2.
    return _chart(title, chart)


def bar_chart(title: str, labels: Sequence[str], values: Sequence[float], y_title: str) -> str:
    """One bar per label, from zero, with its value on top; a value that is not finite has no bar."""
    if len(labels) != len(values):
        raise ValueError(f"bar chart {title!r} has {len(labels)} labels for {len(values)} values")
    chart = pygal.Bar(
        **_options("", y_title),
        show_legend=False,
        print_values=True,
        print_values_position="top",
        x_label_rotation=30 if sum(map(len, labels)) > 80 else 0,
    )
    chart.x_labels = list(labels)
    chart.add("", [value if math.isfinite(value) else None for value in values])
    return _chart(title, chart)


def _options(x_title: str, y_title: str) -> dict[str, Any]:
    """What both kinds of chart share. pygal lays out with these font sizes, the page's CSS draws."""
    sizes = {f"{part}_font_size": 12 for part in ("label", "major_label", "legend", "title", "value")}
    return {
        "style": Style(**sizes),
        "width": 760,
        "height": 320,
        "margin": 16,
        "explicit_size": True,
        "disable_xml_declaration": True,
        "js": [],
        "css": [],
        "x_title": x_title,
        "y_title": y_title,
        "max_scale": 6,
        "value_formatter": _text,
    }


def _chart(title: str, chart: pygal.Graph) -> str:
    chart.add_xml_filter(_static)
    return _fill(_CHART, title=title, svg=chart.render(is_unicode=True))


def _static(root: Element) -> Element:
    """Leaves of pygal's SVG what is drawn: no script, style, date, random id or hidden tooltip."""
    for child in list(root):
        if child.tag != "g":
            root.remove(child)
    for node in root.iter():
        node.attrib.pop("id", None)
        for child in list(node):
            if child.tag == "desc" or "tooltip-overlay" in child.get("class", ""):
                node.remove(child)
    return root


def _thinned(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The finite points, at most ``MAX_POINTS`` of them, evenly chosen with both ends."""
    finite = [(float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    chosen = np.linspace(0, len(finite) - 1, min(len(finite), MAX_POINTS)).round().astype(int)
    return [finite[place] for place in chosen]


def _fill(template: str, **values: Any) -> str:
    return _JINJA.from_string(template).render(values)


def _texts(rows: Iterable[Iterable[Any]]) -> list[list[str]]:
    return [[_text(cell) for cell in row] for row in rows]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    if isinstance(value, (float, np.floating)):
        return f"{value:,.0f}" if 1e5 <= abs(float(value)) < 1e15 else f"{value:,.5g}"
    return str(value)
