"""A page of groups of duplicates, with thumbnails."""

from collections.abc import Iterator, Mapping

from imgindex.evaluation.duplicates.results import Duplicate, DuplicateGroup, Duplicates
from imgindex.evaluation.report.fragments import STYLE, paragraph
from imgindex.evaluation.report.thumbnails import read_thumbnails
from imgindex.generations.manifest import Manifest
from imgindex.search.gallery import figure, query_row
from imgindex.search.page_frame import document, escaped
from imgindex.text import counted, human_bytes

# Groups, and images of each, that are shown at most. A picture takes some 5 KiB.
_GROUPS, _IMAGES = 200, 12
_SECONDS = 60.0

_KEEP = """
.query::before { content: "Keep"; }
ol::before { content: "Duplicates"; }
"""
_AGAINST = """
.query::before { content: "Image"; }
ol::before { content: "Its duplicates"; }
"""


def duplicates_page(found: Duplicates, manifests: Mapping[str, Manifest]) -> str:
    """A self-contained HTML page of the groups that were found, the first 200, 12 images of each at most.

    `manifests` are those of the indexes, by their directories. Pictures that cannot be read are placeholders.
    """
    facts = [
        ("Index", found.output),
        ("Generation", found.generation),
        *([("Against", found.against)] if found.against else []),
        ("Images", f"{found.images:,}"),
        ("Threshold", f"{found.threshold:g}"),
        ("Exact", _counted(found.exact.groups, found.exact.images)),
        ("Near", _counted(found.near.groups, found.near.images)),
    ]
    groups = found.groups[:_GROUPS]
    pictures: dict[tuple[str, str], str] = {}
    for index, manifest in manifests.items():
        uris = [
            image.uri for group in groups for image in group.images[: _IMAGES + 1] if image.index == index
        ]
        if uris:
            read = read_thumbnails(manifest, uris, _SECONDS / len(manifests))
            pictures |= {(index, uri): picture for uri, picture in read.items()}
    text = (
        "Exact duplicates are files of the same bytes. Near ones have features whose similarity, a cosine, "
        "reaches the threshold. Nothing was deleted."
    )
    rows = [row for number, group in enumerate(groups, 1) for row in _rows(number, group, pictures)]
    content = paragraph(text) + ("\n".join(rows) or '<p class="none">There are no duplicates.</p>')
    hidden = len(found.groups) - len(groups)
    more = f"{counted(hidden, 'more group is', 'more groups are')} not shown" if hidden else ""
    title = "Images that another index holds, too" if found.against else "Duplicates"
    return document(title, facts, content, more=more, style=STYLE + (_AGAINST if found.against else _KEEP))


def _counted(groups: int, images: int) -> str:
    return f"{counted(groups, 'group')}, {counted(images, 'image')}"


def _rows(number: int, group: DuplicateGroup, pictures: Mapping[tuple[str, str], str]) -> Iterator[str]:
    first, *others = group.images
    facts = [group.kind, counted(len(group.images), "image")]
    if group.kind == "near":
        facts.append(f"least similarity {group.least_similarity:.4f}")
    if len(others) > _IMAGES:
        facts.append(f"{_IMAGES} duplicates shown")
    yield f"<h3>{escaped(f'{number}: ' + ', '.join(facts))}</h3>"
    yield query_row(
        _figure(first, pictures, group.why),
        [_figure(image, pictures, f"{image.similarity:.4f}") for image in others[:_IMAGES]],
    )


def _figure(image: Duplicate, pictures: Mapping[tuple[str, str], str], what: str) -> str:
    size = f"{image.width}x{image.height}, {human_bytes(image.size)}"
    return figure(pictures.get((image.index, image.uri)), image.uri, f"{what} · {size}" if what else size)
