"""Which files of an input are images: by extension, and by patterns like those of .gitignore.

As in Git, a folder is left out with everything in it, whatever other patterns say. So nobody looks into it.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from imgindex.config import ImagesConfig
from imgindex.inputs import skipped as kinds
from imgindex.io.patterns import compiled
from imgindex.models.plugins import readable

# Hidden names, and what Synology, Windows and macOS put beside photos.
HIDDEN = (".*", "@eaDir", "Thumbs.db", "__MACOSX")
_SYSTEM = frozenset(HIDDEN[1:])

# Folders, one in the other, that are looked at: a name in a tar may have half a million.
_DEEPEST = 1000


@dataclass(frozen=True)
class Selection:
    """What of an input is taken."""

    extensions: tuple[str, ...]  # that the names of images end in, in any case
    include: tuple[str, ...] = ()  # patterns of what is taken; all where there are none
    exclude: tuple[str, ...] = ()  # patterns of what is left out
    spelled: tuple[str, ...] = ()  # names that the input itself spells out, which may be hidden ones
    hidden: bool = False  # whether hidden names are taken

    def rules(self) -> "Rules":
        """The same, ready to be asked."""
        return _rules(self)


def selection_of(images: ImagesConfig) -> Selection:
    """Which files of an input are taken: of the extensions those that this machine can read."""
    return Selection(readable(images.extensions), images.include, images.exclude)


class Rules:
    """A `Selection` that is asked. Paths are relative to the input's root."""

    def __init__(self, selection: Selection) -> None:
        self.suffixes = tuple(extension.lower() for extension in selection.extensions)
        named = (part for pattern in selection.include for part in pattern.split("/"))
        taken = [f"!{name}" for name in (*selection.spelled, *named) if _is_hidden(name)]
        own = [] if selection.hidden else [*HIDDEN, *taken]
        self._own = len(own)
        self._excluded = [*enumerate(compiled([*own, *selection.exclude]).patterns)]
        self._included = compiled(selection.include) if selection.include else None
        self._by_name = not selection.exclude
        self._folder_of_file = lru_cache(1024)(self._parent_left_out)

    def folder_left_out(self, path: str) -> str | None:
        """The kind that a folder is counted as if patterns leave it out; None where they take it.

        The folders that it lies in are not looked at.
        """
        index = self._match(f"{path}/", path.rpartition("/")[2])
        if index is None:
            return None
        return kinds.HIDDEN_FOLDERS if index < self._own else kinds.EXCLUDED_FOLDERS

    def file_left_out(self, path: str) -> str | None:
        """The kind that a file is counted as if patterns leave it out; None where they take it.

        The folders that it lies in are not looked at.
        """
        index = self._match(path, path.rpartition("/")[2])
        if index is not None:
            return kinds.HIDDEN_FILES if index < self._own else kinds.EXCLUDED_FILES
        is_included = self._included is None or self._included.match_file(path)
        return None if is_included else kinds.EXCLUDED_FILES

    def takes(self, path: str, suffixes: tuple[str, ...], skipped: Counter[str]) -> bool:
        """Whether a file is taken, its folders aside; counts it in `skipped` where it is not."""
        why = self.file_left_out(path)
        if why is None:
            if path.lower().endswith(suffixes):
                return True
            why = kinds.kind_of(path.rpartition("/")[2])
        kinds.count(skipped, why)
        return False

    def takes_below(self, path: str, start: int, suffixes: tuple[str, ...], skipped: Counter[str]) -> bool:
        """As `takes`, but looks at the file's folders, too, below the first `start` characters of `path`."""
        why = self.left_out_below(path, start)
        if why is None:
            return self.takes(path, suffixes, skipped)
        kinds.count(skipped, why)
        return False

    def left_out_below(self, path: str, start: int = 0) -> str | None:
        """The kind that a file is counted as if one of its folders is left out; None where none is.

        Folders in the first `start` characters of `path` are not looked at.
        """
        folder = path.rpartition("/")[0]
        return self._folder_of_file(folder, start) if len(folder) > start else None

    def _parent_left_out(self, folder: str, start: int) -> str | None:
        parts = folder[start:].split("/")
        if self._by_name and not any(map(_is_hidden, parts)):
            return None
        at = folder[:start]
        for part in parts[:_DEEPEST]:
            at += part
            why = self.folder_left_out(at)
            if why is not None:
                return kinds.HIDDEN_FILES if why == kinds.HIDDEN_FOLDERS else kinds.EXCLUDED_FILES
            at += "/"
        return None

    def _match(self, path: str, name: str) -> int | None:
        """The number of the pattern that leaves out `path`; None where none does."""
        if self._by_name and not _is_hidden(name):  # a million names are, and a pattern takes microseconds
            return None
        # The last pattern that matches the path itself decides. pathspec alone would also count those that
        # match a folder that it lies in.
        path = path.lstrip("/")
        for index, pattern in reversed(self._excluded):
            found = pattern.match_file(path) if pattern.include is not None else None
            if found is not None and _is_of_end(found.match):
                return index if pattern.include else None
        return None


def _is_of_end(match: re.Match[str]) -> bool:
    """Whether pathspec has matched a path to its end, and not a folder and whatever lies in it."""
    folder = match.groupdict().get("ps_d")
    return not folder or match.end("ps_d") == len(match.string)


def _is_hidden(name: str) -> bool:
    return (name.startswith(".") and name not in (".", "..")) or name in _SYSTEM


def spelled_out(pattern: str) -> Sequence[str]:
    """The names that a glob spells out and that are hidden ones: who writes their dot wants them."""
    return [name for name in re.split("/+", pattern) if _is_hidden(name)]


@lru_cache(16)
def _rules(selection: Selection) -> Rules:
    return Rules(selection)
