"""Files of an input that are not taken as images: counted, for a path a file would fill the output."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from imgindex.models.plugins import missing_extra
from imgindex.uris import uri_of

Counts = Mapping[str, int]


@dataclass(frozen=True)
class Skipped:
    """A part of an input's files that are not taken: how many there are of each kind."""

    counts: Counts


# What is counted beside extensions, which begin with a dot.
HIDDEN_FILES, HIDDEN_FOLDERS = "hidden files", "hidden folders"
EXCLUDED_FILES, EXCLUDED_FOLDERS = "excluded files", "excluded folders"
NO_EXTENSION, OTHER = "no extension", "other"

# Longer ones are parts of names. And a folder may hold millions of different ones.
_LONGEST_EXTENSION = 10
_MOST_KINDS = 1000
_MOST_SHOWN = 20


def kind_of(name: str) -> str:
    """What a file of this name counts as that has no image's extension."""
    stem, _, extension = name.rpartition(".")
    if not (stem and extension):
        return NO_EXTENSION
    return f".{uri_of(extension.lower())}" if len(extension) <= _LONGEST_EXTENSION else OTHER


def count(counts: Counter[str], kind: str, files: int = 1) -> None:
    """Adds files of a kind, as others where there are many kinds already."""
    counts[kind if kind in counts or len(counts) < _MOST_KINDS else OTHER] += files


def add(counts: Counter[str], more: Counts) -> None:
    """Adds `more` to `counts`, whose number of kinds stays bounded."""
    for kind, files in more.items():
        count(counts, kind, files)


def added(one: Counts, other: Counts) -> Counts:
    """Both together, with a bounded number of kinds."""
    if not (one and other):
        return one or other
    counts = Counter(one)
    add(counts, other)
    return counts


def most_frequent(counts: Counts) -> dict[str, int]:
    """The kinds that the manifest names, the most frequent extensions first, and all others as one."""
    extensions = Counter({kind: files for kind, files in counts.items() if kind.startswith(".")})
    ranked = sorted(extensions, key=lambda kind: (-extensions[kind], kind))
    shown = {kind: extensions[kind] for kind in ranked[:_MOST_SHOWN]}
    others = counts.get(OTHER, 0) + sum(extensions[kind] for kind in ranked[_MOST_SHOWN:])
    words = (NO_EXTENSION, HIDDEN_FILES, HIDDEN_FOLDERS, EXCLUDED_FILES, EXCLUDED_FOLDERS)
    shown |= {kind: counts[kind] for kind in words if counts.get(kind)}
    return shown | ({OTHER: others} if others else {})


def described(counts: Counts) -> str:
    """Counts as people read them: ``95 .heic, 1 hidden folder; .heic needs imgindex[heif]``."""
    parts = [
        f"{files} {kind[:-1] if files == 1 and kind.endswith('s') and kind[0] != '.' else kind}"
        for kind, files in counts.items()
    ]
    needs = [f"{kind} needs imgindex[{extra}]" for kind in counts if (extra := missing_extra(kind))]
    return "; ".join([", ".join(parts), *needs])
