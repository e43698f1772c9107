"""Sections of pictures: galleries of queries and their neighbors, the closest pairs, and a map."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from imgindex.evaluation.report import charts
from imgindex.evaluation.report.fragments import beside, paragraph, section
from imgindex.evaluation.report.map_section import map_section
from imgindex.evaluation.report.neighborhoods import Map, Neighborhoods, Query, label_of, names_of
from imgindex.evaluation.report.thumbnails import read_thumbnails
from imgindex.evaluation.results import Quality
from imgindex.evaluation.tables import percent
from imgindex.search.gallery import figure, query_row
from imgindex.search.page_frame import escaped
from imgindex.text import counted

# Labels whose queries are shown, from each end; and queries of each.
_WORST, _BEST, _OF_EACH = 4, 2, 2
# Queries that are shown of images without labels, or where no label is worse than another.
_ANY = 8

# Titles, and the queries below each.
Galleries = list[tuple[str, Sequence[Query]]]


@dataclass(frozen=True)
class Chosen:
    """What is shown of a sample."""

    around: Neighborhoods
    text: str  # which queries the galleries show
    galleries: Galleries
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


def choose(around: Neighborhoods, quality: Quality | None, most_pictures: int) -> Chosen:
    """Picks what to show: queries of the worst and the best labels, or any if no label is worse than another.

    The map has at most `most_pictures`.
    """
    text, galleries = _galleries_of(around, quality)
    return Chosen(around, text, galleries, around.pairs(), around.map(most_pictures))


def _galleries_of(around: Neighborhoods, quality: Quality | None) -> tuple[str, Galleries]:
    any_of_them: Galleries = [("Some queries", around.some(_ANY))]
    if quality is None:
        return "", any_of_them
    name = f"P@{quality.k}"
    labels = sorted(quality.per_label, key=lambda each: (each.p_at_k, each.label))
    shares = Counter(each.p_at_k for each in labels)
    if len(shares) == 1:
        return (
            f"{name} is {percent(labels[0].p_at_k)} for every label, so none is worse than another.",
            any_of_them,
        )
    worst = [each for each in labels if each.p_at_k < labels[-1].p_at_k][:_WORST]
    best = [each for each in labels if each.p_at_k > worst[-1].p_at_k][-_BEST:]
    galleries: Galleries = []
    for title, chosen, count in (("Among the worst", worst, _OF_EACH), ("Among the best", best, 1)):
        for each in chosen:
            like = shares[each.p_at_k]
            others = f", one of {like} labels with that" if like > 1 else ""
            heading = f"{title}: {each.label} ({name} {percent(each.p_at_k)}{others})"
            galleries.append((heading, around.of_label(each.label, count)))
    text = (
        "Each label's worst queries come first: those with the fewest right neighbors. A neighbor with a red "
        "border and the words “other label” is wrong: it lies in another folder than the query."
    )
    if around.shown < quality.k:
        text += f" Of the {quality.k} neighbors that {name} counts, the first {around.shown} are shown."
    return text, galleries


def picture_sections(chosen: Chosen, most: int, seconds: float) -> list[str]:
    """Markup of the sections; thumbnails of at most `most` images, read within `seconds`."""
    around = chosen.around
    collection = around.collection
    images = list(dict.fromkeys(chosen.images()))[:most]
    uris = names_of(collection, images)
    read = read_thumbnails(collection.manifest, uris, seconds) if uris else {}
    found = {image: read[uri] for image, uri in zip(images, uris, strict=True) if uri in read}
    sample = counted(len(around.queries), "image")
    note = _missing_note(len(images), len(images) - len(found), collection.manifest.input_root, seconds)
    drawn = _Drawn(around, found)
    return [
        *_galleries(chosen, drawn, note),
        *_similarities(around, sample),
        *_pairs(chosen, drawn, sample),
        *([map_section(around, chosen.map, found)] if chosen.map else []),
    ]


def _missing_note(wanted: int, missing: int, root: str, seconds: float) -> str:
    """What to say if some of the `wanted` pictures are `missing`: where the page looked, and what to do."""
    if not missing:
        return ""
    some = f"{missing:,} of {wanted:,} pictures cannot be shown"
    which = f"None of the {counted(wanted, 'picture')} can be shown" if missing == wanted else some
    return (
        f"{which}: the images could not be read in {root} within {seconds:g} seconds; if they have "
        "been moved, move them back or build again from where they are now."
    )


@dataclass(frozen=True)
class _Drawn:
    """Images with the thumbnails that were found of them."""

    around: Neighborhoods
    found: Mapping[int, str]

    def figure(self, image: int, detail: str, wrong: str = "") -> str:
        """An image without a thumbnail is a placeholder, or its name alone if there are no thumbnails."""
        name = names_of(self.around.collection, [image])[0]
        return figure(self.found.get(image), name, detail, wrong=wrong, framed=bool(self.found))

    def row(self, query: Query) -> str:
        """A query and its neighbors; those of another label are marked."""
        collection = self.around.collection
        label = label_of(collection, query.image)
        neighbors = [
            self.figure(
                image,
                f"cosine {cosine:.3f}",
                "" if label in (None, label_of(collection, image)) else "other label",
            )
            for image, cosine in zip(query.neighbors, query.cosines, strict=True)
        ]
        return query_row(self.figure(query.image, ""), neighbors)


def _galleries(chosen: Chosen, drawn: _Drawn, note: str) -> Iterator[str]:
    rows: list[str] = []
    for title, queries in chosen.galleries:
        if queries:
            rows.append(f"<h3>{escaped(title)}</h3>")
            rows.extend(map(drawn.row, queries))
    if rows:
        text = (
            f"Each row is an image as a query and its {counted(chosen.around.shown, 'nearest neighbor')}, by "
            "exact search. A cosine of 1 means that two vectors point the same way, 0 that they have nothing "
            f"in common. {chosen.text}"
        )
        shown = paragraph(note) if note else ""
        yield section("Queries and their neighbors", paragraph(text), shown, *rows)


def _similarities(around: Neighborhoods, sample: str) -> Iterator[str]:
    values = around.nearest
    if len(values) > 1:
        low, high = float(values.min()), float(values.max())
        alt = f"Histogram of the similarity of {len(values)} images to the nearest: {low:.2f} to {high:.2f}"
        text = (
            f"The cosine of each of {sample} and its nearest other image. Images on the far left have "
            "nothing like them in the index; a heap near 1 means many near-duplicates."
        )
        chart = charts.cosines(values, ("cosine with the nearest image", "images"), alt)
        yield section("How near the nearest are", paragraph(text), beside(chart))


def _pairs(chosen: Chosen, drawn: _Drawn, sample: str) -> Iterator[str]:
    if not chosen.pairs:
        return
    pairs = "".join(
        f'<div class="couple">{drawn.figure(pair.image, f"cosine {pair.cosines[0]:.4f}")}'
        f"{drawn.figure(pair.neighbors[0], '')}</div>"
        for pair in chosen.pairs
    )
    copies = len(chosen.around.collection) - len(chosen.around.collection.sha256)
    text = f"The most similar pairs among {sample}: the likeliest duplicates. "
    text += "Images of the same bytes are left out"
    text += f"; {counted(copies, 'image is a copy', 'images are copies')} of another." if copies else "."
    yield section("Closest pairs", paragraph(text), f'<div class="couples">{pairs}</div>')
