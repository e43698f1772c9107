"""The sections of a page that show images: galleries of neighbors, the closest pairs, and a map."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from imgindex.evaluation.report import charts
from imgindex.evaluation.report.fragments import paragraph, section
from imgindex.evaluation.report.neighborhoods import Map, Neighborhoods, Query, label_of, names_of
from imgindex.evaluation.report.thumbnails import read_thumbnails
from imgindex.search.gallery import figure, query_row
from imgindex.search.page_frame import escaped
from imgindex.text import counted

# Labels whose queries are shown, from each end; and queries of each.
_WORST, _BEST, _OF_EACH = 4, 2, 2
# Queries that are shown of images without labels.
_UNLABELED = 8
# Hues that labels have on the map, the largest first.
_HUES = 8


@dataclass(frozen=True)
class Chosen:
    """What is shown of a sample."""

    around: Neighborhoods
    galleries: Sequence[tuple[str, Sequence[Query]]]  # a title, and queries
    pairs: Sequence[Query]
    map: Map | None

    def images(self) -> Iterator[int]:
        """The images whose pictures are shown, the most telling first; some come more than once."""
        for _, queries in self.galleries:
            for query in queries:
                yield from (query.image, *query.neighbors)
        for pair in self.pairs:
            yield from (pair.image, *pair.neighbors)
        if self.map is not None:
            yield from self.map.images[list(self.map.pictures)].tolist()


def choose(around: Neighborhoods, labels_worst_first: Sequence[str], most_pictures: int) -> Chosen:
    """Picks what to show: queries of the worst and the best of the labels, or any where there are none."""
    galleries: list[tuple[str, Sequence[Query]]] = []
    if labels_worst_first:
        worst = labels_worst_first[:_WORST]
        best = [label for label in labels_worst_first[-_BEST:] if label not in worst]
        galleries += [(f"Among the worst: {each}", around.of_label(each, _OF_EACH)) for each in worst]
        galleries += [(f"Among the best: {each}", around.of_label(each, 1)) for each in best]
    else:
        galleries += [("Some queries", around.some(_UNLABELED))]
    return Chosen(around, galleries, around.pairs(), around.map(most_pictures))


def picture_sections(chosen: Chosen, most: int, seconds: float) -> list[str]:
    """Markup of the sections; thumbnails of at most `most` images, read within `seconds`."""
    around = chosen.around
    collection = around.collection
    images = list(dict.fromkeys(chosen.images()))[:most]
    uris = names_of(collection, images)
    read = read_thumbnails(collection.manifest, uris, seconds) if uris else {}
    found = {image: read[uri] for image, uri in zip(images, uris, strict=True) if uri in read}
    sample = counted(len(around.queries), "image")
    missing = len(images) - len(found)
    note = [paragraph(f"{counted(missing, 'picture')} could not be read in time, or at all.")] * bool(missing)
    return [
        *_galleries(chosen, found, note),
        *_similarities(around, sample),
        *_pairs(chosen, found, sample),
        *_map(chosen, found),
    ]


def _galleries(chosen: Chosen, found: Mapping[int, str], note: Sequence[str]) -> Iterator[str]:
    rows: list[str] = []
    for title, queries in chosen.galleries:
        if queries:
            rows.append(f"<h3>{escaped(title)}</h3>")
            rows.extend(_row(chosen.around, query, found) for query in queries)
    if rows:
        text = (
            "Images as queries, and their neighbors in the index by exact search. Of each label those come "
            "first whose neighbors have it least."
        )
        yield section("Queries and their neighbors", paragraph(text), *note, *rows)


def _row(around: Neighborhoods, query: Query, found: Mapping[int, str]) -> str:
    neighbors = [
        _figure(around, image, found, f"cosine {cosine:.3f}")
        for image, cosine in zip(query.neighbors, query.cosines, strict=True)
    ]
    return query_row(_figure(around, query.image, found, "query"), neighbors)


def _figure(around: Neighborhoods, image: int, found: Mapping[int, str], detail: str) -> str:
    return figure(found.get(image), names_of(around.collection, [image])[0], detail)


def _similarities(around: Neighborhoods, sample: str) -> Iterator[str]:
    values = around.nearest
    if len(values) > 1:
        low, high = float(values.min()), float(values.max())
        alt = f"Histogram of the similarity of {len(values)} images to the nearest: {low:.2f} to {high:.2f}"
        text = (
            f"The cosine of each of {sample} and its nearest other image. Images on the far left have "
            "nothing like them in the index; a heap near 1 means many near-duplicates."
        )
        chart = charts.histogram(values, ("cosine with the nearest image", "images"), alt)
        yield section("How near the nearest are", paragraph(text), f'<div class="charts">{chart}</div>')


def _pairs(chosen: Chosen, found: Mapping[int, str], sample: str) -> Iterator[str]:
    if not chosen.pairs:
        return
    pairs = "".join(
        f'<div class="couple">{_figure(chosen.around, pair.image, found, f"cosine {pair.cosines[0]:.4f}")}'
        f"{_figure(chosen.around, pair.neighbors[0], found, '')}</div>"
        for pair in chosen.pairs
    )
    copies = len(chosen.around.collection) - len(chosen.around.collection.sha256)
    text = f"The nearest neighbors of {sample} that are nearest of all, and so the likeliest duplicates. "
    text += "Images of the same bytes are left out"
    text += f"; {counted(copies, 'image is a copy', 'images are copies')} of another." if copies else "."
    yield section("Closest pairs", paragraph(text), f'<div class="couples">{pairs}</div>')


def _map(chosen: Chosen, found: Mapping[int, str]) -> Iterator[str]:
    if chosen.map is None:
        return
    around, shown = chosen.around, chosen.map
    hues = _hues(around)
    width, height, side, margin = 1000, 620, 62, 40
    marks = []
    names = names_of(around.collection, shown.images.tolist())
    for row, (x, y) in enumerate(shown.places.tolist()):
        image = int(shown.images[row])
        left, top = margin + x * (width - 2 * margin), margin + (1 - y) * (height - 2 * margin)
        title = f"<title>{escaped(names[row])}</title>"
        if row in shown.pictures and image in found:
            place = f'x="{left - side / 2:.1f}" y="{top - side / 2:.1f}" width="{side}" height="{side}"'
            marks.append((1, f'<image href="{found[image]}" {place}>{title}</image>'))
        else:
            hue = hues.get(label_of(around.collection, image) or "", 0)
            marks.append((0, f'<circle class="h{hue}" cx="{left:.1f}" cy="{top:.1f}" r="4">{title}</circle>'))
    marks.sort(key=lambda mark: mark[0])  # pictures on top
    legend = "".join(
        f'<li><svg viewBox="0 0 10 10" aria-hidden="true"><circle class="h{hue}" cx="5" cy="5" r="5"/></svg>'
        f"<bdi>{escaped(label)}</bdi></li>"
        for label, hue in hues.items()
    )
    text = (
        f"{counted(len(shown.images), 'image')}, placed by the first two principal components of their "
        "vectors. What lies close together here need not be close in all dimensions."
    )
    alt = escaped(f"Map of {len(shown.images)} images by the first two principal components")
    yield section(
        "Map",
        paragraph(text),
        f'<ul class="legend">{legend}</ul>' if legend else "",
        f'<svg class="map" role="img" aria-label="{alt}" viewBox="0 0 {width} {height}">',
        "".join(mark for _, mark in marks),
        "</svg>",
    )


def _hues(around: Neighborhoods) -> dict[str, int]:
    """Numbers of hues of the labels that most of the sample's images have."""
    counts: dict[str, int] = {}
    for image in around.queries.tolist():
        label = label_of(around.collection, image)
        if label is not None:
            counts[label] = counts.get(label, 0) + 1
    largest = sorted(counts, key=lambda label: (-counts[label], label))[:_HUES]
    return {label: number + 1 for number, label in enumerate(largest)}
