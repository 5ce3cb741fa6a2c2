"""Where an event's microseconds go, as an SVG that stands in a README: one bar, cut into its stages."""

import statistics
from collections.abc import Sequence
from xml.sax.saxutils import escape

from benchmarks.figures import Figure

WIDTH = 800  # pixels, and so are all of these
MARGIN = 20
TITLE_HEIGHT = 48
BAR_HEIGHT = 44
LINE_HEIGHT = 24
COLOURS = ("#4e79a7", "#76b7b2", "#f28e2b", "#edc948", "#59a14f", "#b07aa1", "#e15759", "#9c755f")


def draw(stages: Sequence[Figure]) -> str:
    """Draw the stages' medians.

    Args:
        stages: figures in microseconds, in the order of an event's way.
    """
    micros = [statistics.median(sample.value for sample in figure.ours) for figure in stages]
    total = sum(micros)
    height = TITLE_HEIGHT + BAR_HEIGHT + LINE_HEIGHT * len(stages) + 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
        f"<title>An event takes {total:.0f} µs of CPU</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{MARGIN}" y="30" font-size="18">An event takes {total:.0f} µs of CPU, from bytes to settled</text>',
    ]
    x = float(MARGIN)
    for index, (figure, taken) in enumerate(zip(stages, micros, strict=True)):
        colour = COLOURS[index % len(COLOURS)]
        width = taken / total * (WIDTH - 2 * MARGIN)
        y = TITLE_HEIGHT + BAR_HEIGHT + MARGIN + LINE_HEIGHT * index
        parts += [
            f'<rect x="{x:.1f}" y="{TITLE_HEIGHT}" width="{width:.1f}" height="{BAR_HEIGHT}" fill="{colour}"/>',
            f'<rect x="{MARGIN}" y="{y}" width="14" height="14" fill="{colour}"/>',
            f'<text x="{MARGIN + 24}" y="{y + 12}" font-size="14">{escape(figure.what)}</text>',
            f'<text x="{MARGIN + 260}" y="{y + 12}" font-size="14" text-anchor="end">{taken:.1f} µs</text>',
            f'<text x="{MARGIN + 330}" y="{y + 12}" font-size="14" text-anchor="end">{taken / total:.0%}</text>',
        ]
        x += width
    return "\n".join([*parts, "</svg>"]) + "\n"
