"""The images of an input, listed in one process: cut into pieces, looked up, and tars gone through."""

from collections import Counter
from collections.abc import Iterator

from imgindex.inputs import tar_members
from imgindex.inputs.lookup import look_up
from imgindex.inputs.pieces import cut
from imgindex.inputs.selection import Selection
from imgindex.inputs.skipped import Skipped, add
from imgindex.inputs.source import is_list, settled
from imgindex.inputs.tar_members import TarFile
from imgindex.records import Failure, ImageFile


def list_images(
    source: str, selection: Selection, skipped: Counter[str] | None = None
) -> Iterator[ImageFile | Failure]:
    """Yields the images of `source`, in no set order, a page at a time: who stops early has read little.

    They are the files that `selection` takes, also as members of tars, and whatever a list names that no
    pattern leaves out. A file that cannot be looked at, or is no regular file, comes as a `Failure`. Whoever
    goes to the end has in `skipped` how many others there are.

    Raises:
      InputError: there is no such directory, it cannot be read, or its storage is out of order.
    """
    selection = settled(selection, source)
    skipped = Counter() if skipped is None else skipped
    repeats = is_list(source)
    seen: set[str] = set()
    for piece in cut(source, selection, parts=1):
        for found in (piece,) if isinstance(piece, Skipped) else look_up(piece, source, selection):
            images = (
                tar_members.each_image(found, selection.rules()) if isinstance(found, TarFile) else (found,)
            )
            for image in images:
                if isinstance(image, Skipped):
                    add(skipped, image.counts)
                    continue
                if image.uri not in seen:
                    yield image
                if repeats or isinstance(found, TarFile):
                    seen.add(image.uri)
