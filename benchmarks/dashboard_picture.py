"""The dashboard's panels as an SVG: each where Grafana puts it, with a line for each series."""

import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from tests.support.monitoring import Series

COLUMN = 44  # pixels, and so are all of these; Grafana's grid has 24 columns
ROW = 22
GAP = 4
TITLE = 16
LEGEND = 14
COLOURS = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#76b7b2", "#9c755f", "#edc948")
MIN_GAP = 1.5  # seconds; numbers come every second
MAX_SHOWN = 8  # series of a panel


def draw(panels: Sequence[Mapping[str, Any]], found: Mapping[str, Sequence[Series]]) -> str:
    """Draw the panels.

    Args:
        panels: as the dashboard has them.
        found: what each query came to.
    """
    every = [at for answers in found.values() for series in answers for at, _ in series.points]
    times = min(every), max(every)
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) * ROW
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {24 * COLUMN} {height}" font-family="sans-serif">',
        "<title>The dashboard, from what Prometheus recorded of a server</title>",
        f'<rect width="{24 * COLUMN}" height="{height}" fill="#f4f5f5"/>',
    ]
    for panel in panels:
        place = panel["gridPos"]
        x, y = place["x"] * COLUMN + GAP / 2, place["y"] * ROW + GAP / 2
        width, tall = place["w"] * COLUMN - GAP, place["h"] * ROW - GAP
        parts += [
            f'<g transform="translate({x:g} {y:g})"><rect width="{width}" height="{tall}" fill="#fff" stroke="#ddd"/>',
            f'<text x="6" y="{TITLE - 2}" font-size="11" font-weight="bold">{escape(panel["title"])}</text>',
            *_panel(panel, found, times, (width, tall)),
            "</g>",
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(
    panel: Mapping[str, Any],
    found: Mapping[str, Sequence[Series]],
    times: tuple[float, float],
    size: tuple[int, int],
) -> list[str]:
    (first, last), (width, height) = times, size
    unit = panel["fieldConfig"]["defaults"]["unit"]
    lines = [
        (_legend(target["legendFormat"], series.labels), series.points)
        for target in panel["targets"]
        for series in found[target["expr"]]
        if series.points
    ]
    if not lines:
        return [f'<text x="6" y="{height / 2}" font-size="11" fill="#c00">no data</text>']
    lines = sorted(lines, key=lambda line: -max(value for _, value in line[1]))[:MAX_SHOWN]
    values = [value for _, points in lines for _, value in points]
    top = max(values) or 1.0
    is_stat = panel["type"] == "stat"
    bottom = height - 6 if is_stat else height - 6 - LEGEND * (1 + (len(lines) - 1) // 2)
    parts = [f'<text x="{width - 6}" y="{TITLE - 2}" font-size="9" text-anchor="end">{text(max(values), unit)}</text>']
    if is_stat:
        now = text(lines[0][1][-1][1], unit)
        parts.append(f'<text x="{width / 2}" y="{height / 2 + 8}" font-size="18" text-anchor="middle">{now}</text>')
    for index, (legend, points) in enumerate(lines):
        colour = COLOURS[index % len(COLOURS)]
        drawn, before = "", -MIN_GAP
        for at, value in points:  # a line ends where there is no number
            x = 6 + (at - first) / (last - first) * (width - 12)
            y = bottom - max(value, 0) / top * (bottom - TITLE - 4)
            drawn += f"{'L' if at - before < MIN_GAP else 'M'}{x:.0f} {y:.0f}"
            before = at
        parts.append(f'<path d="{drawn}" fill="none" stroke="{colour}" stroke-width="1.2"/>')
        if not is_stat:
            at_x, at_y = 6 + index % 2 * width // 2, bottom + LEGEND * (1 + index // 2)
            shown = escape(f"{legend}: {text(points[-1][1], unit)}")
            parts.append(f'<text x="{at_x}" y="{at_y}" font-size="9" fill="{colour}">{shown}</text>')
    return parts


def _legend(form: str, labels: Mapping[str, str]) -> str:
    """The name of a series; every instance is the same one here, so it is not named."""
    named = re.sub(r"\{\{(\w+)\}\}", lambda found: "" if found[1] == "instance" else labels.get(found[1], ""), form)
    return named.strip() or "server"


def text(value: float, unit: str) -> str:
    """A number for people."""
    match unit:
        case "bytes":
            return f"{value / 1024**2:.3g} MiB" if value >= 1024**2 else f"{value / 1024:.3g} KiB"
        case "s" if value < 1:
            return f"{value * 1000:.3g} ms"
        case "s":
            return f"{value:.3g} s"
        case "percentunit":
            return f"{value * 100:.3g} %"
        case "ops":
            return f"{value:.3g}/s"
        case _:
            return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
