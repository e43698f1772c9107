"""Ranges of an object store's keys: a listing cut into parts that workers share, and each part listed."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from imgindex.io import filesystem
from imgindex.io.object_protocol import LAST, Found

# Parts that are enough for some hundred workers; a part of 10**8 objects is some hundred requests then.
PARTS = 256

# Requests that are under way at once while a listing is cut: boto3 keeps so many connections.
_REQUESTS = 10

# Parts that a part is cut into at most, for keys may go on in any character.
_MOST_CUTS = 128


@dataclass(frozen=True)
class KeyRange:
    """Files of an object store: those whose paths begin with `prefix`, behind `after` and up to `last`."""

    prefix: str
    after: str = ""
    last: str | None = None  # None: to the end

    def holds(self, path: str) -> bool:
        """Whether a path that begins with the prefix and sorts behind `after` is of the range."""
        return self.last is None or path <= self.last


def objects_of(keys: KeyRange) -> Iterator[Found]:
    """The files of a range, in the order of their paths, page by page. Raises OSError."""
    for found in filesystem.each_object(keys.prefix, keys.after):
        if not keys.holds(found.path):
            return
        yield found


def cut(whole: KeyRange, parts: int = PARTS) -> list[KeyRange]:
    """Cuts a range into about `parts`, or fewer where a request lists what is in one. Raises OSError.

    Nothing is known of the keys before. So what they have in common is asked for, and then which characters
    follow it: each is a part, which is cut again.
    """
    small: list[KeyRange] = []
    large = [whole]
    with ThreadPoolExecutor(_REQUESTS, "cut") as pool:
        while large and len(small) + len(large) < parts:
            cuts = list(pool.map(_cut_once, large))
            small += [keys for cut in cuts if len(cut) == 1 for keys in cut]
            large = [keys for cut in cuts if len(cut) > 1 for keys in cut]
    return small + large


def _cut_once(keys: KeyRange) -> list[KeyRange]:
    found, more = filesystem.page(keys.prefix, keys.after)
    if not (found and more and keys.holds(found[-1].path)):
        return [keys]
    common = _in_common(found[0].path, found[-1].path)
    edge = common + LAST
    while (beyond := _first(keys, edge)) is not None:
        common = _in_common(common, beyond)
        # A key may itself go on with the last character that there is.
        edge = max(common + LAST, beyond)
    cuts: list[KeyRange] = []
    after, path = keys.after, found[0].path
    while len(cuts) < _MOST_CUTS:
        following = path[len(common) :][:1]
        edge = max(common + following + LAST, path) if following else common
        cuts.append(KeyRange(keys.prefix, after, edge))
        behind = _first(keys, edge)
        if behind is None:
            break
        after, path = edge, behind
    cuts[-1] = replace(cuts[-1], last=keys.last)
    return cuts


def _in_common(one: str, other: str) -> str:
    return os.path.commonprefix([one, other])  # noqa: RUF071 - characters are meant, not folders


def _first(keys: KeyRange, after: str) -> str | None:
    """The first path of a range behind `after`."""
    for found in filesystem.page(keys.prefix, max(after, keys.after), limit=1).found:
        return found.path if keys.holds(found.path) else None
    return None
