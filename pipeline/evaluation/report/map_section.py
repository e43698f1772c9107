"""The map of a sample: points for its images, some of their pictures below them, and a legend."""

import math
from collections.abc import Mapping

from imgindex.evaluation.report.fragments import paragraph, section
from imgindex.evaluation.report.neighborhoods import Map, Neighborhoods, label_of, names_of
from imgindex.search.page_frame import escaped
from imgindex.text import counted

# Labels that have a mark of their own, the largest first: no two have both the same color and shape.
_LABELS = 10
_HUES = 6
# Corners of the shapes, and the angle of the first one: a square, a triangle, a diamond; a circle has none.
_SHAPES = ((0, 0.0), (4, math.pi / 4), (3, -math.pi / 2), (4, 0.0))

_WIDTH, _HEIGHT, _MARGIN = 1000, 620, 40
_SIDE, _RADIUS = 56, 5.0


def map_section(around: Neighborhoods, shown: Map, found: Mapping[int, str]) -> str:
    """Markup of the map; `found` has thumbnails, as data URIs, by image."""
    collection = around.collection
    marks = _marks(around)
    names = names_of(collection, shown.images.tolist())
    pictures, points = [], []
    for row, (x, y) in enumerate(shown.places.tolist()):
        image = int(shown.images[row])
        left, top = _MARGIN + x * (_WIDTH - 2 * _MARGIN), _MARGIN + (1 - y) * (_HEIGHT - 2 * _MARGIN)
        title = f"<title>{escaped(names[row])}</title>"
        if row in shown.pictures and image in found:
            place = f'x="{left - _SIDE / 2:.0f}" y="{top - _SIDE / 2:.0f}" width="{_SIDE}" height="{_SIDE}"'
            pictures.append(f'<image href="{found[image]}" {place}>{title}</image>')
        points.append(_mark(marks.get(label_of(collection, image) or ""), left, top, _RADIUS, title))
    legend = "".join(
        f'<li><svg viewBox="0 0 12 12" aria-hidden="true">{_mark(number, 6, 6, 6)}</svg>'
        f"<bdi>{escaped(label)}</bdi></li>"
        for label, number in marks.items()
    )
    if legend:
        other = '<li><svg viewBox="0 0 12 12" aria-hidden="true">{}</svg>any other</li>'
        legend = f'<ul class="legend">{legend}{other.format(_mark(None, 6, 6, 6))}</ul>'
    text = (
        f"{counted(len(shown.images), 'image')}, placed by the first two principal components of their "
        "vectors: the two directions in which the vectors differ most. What lies close together here need "
        "not be close in all dimensions."
    )
    alt = escaped(f"Map of {len(shown.images)} images by the first two principal components")
    return section(
        "Map",
        paragraph(text),
        legend,
        f'<svg class="map" role="img" aria-label="{alt}" viewBox="0 0 {_WIDTH} {_HEIGHT}">',
        "".join([*pictures, *points]),  # no picture hides a point
        "</svg>",
    )


def _mark(number: int | None, x: float, y: float, radius: float, title: str = "") -> str:
    """Markup of the mark of a label, by its number; gray and small without one."""
    hue = 0 if number is None else number % _HUES + 1
    corners, start = _SHAPES[0 if number is None else number % len(_SHAPES)]
    size = radius * (0.7 if number is None else 1)
    if not corners:
        half = f"a{size:g} {size:g} 0 1 0"
        drawn = f"M{x - size:.1f} {y:.1f}{half} {2 * size:g} 0{half} {-2 * size:g} 0"
    else:
        angles = [start + 2 * math.pi * corner / corners for corner in range(corners)]
        places = (f"{x + 1.15 * size * math.cos(a):.1f} {y + 1.15 * size * math.sin(a):.1f}" for a in angles)
        drawn = f"M{'L'.join(places)}z"
    return f'<path class="h{hue}" d="{drawn}">{title}</path>'


def _marks(around: Neighborhoods) -> dict[str, int]:
    """Numbers of the labels that most of the sample's images have."""
    counts: dict[str, int] = {}
    for image in around.queries.tolist():
        label = label_of(around.collection, image)
        if label is not None:
            counts[label] = counts.get(label, 0) + 1
    largest = sorted(counts, key=lambda label: (-counts[label], label))[:_LABELS]
    return {label: number for number, label in enumerate(largest)}
