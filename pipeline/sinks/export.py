"""Exports a generation to a folder that other tools read."""

import os
from dataclasses import dataclass
from pathlib import Path

from imgindex.errors import UsageError
from imgindex.generations.layout import Output
from imgindex.io import filesystem
from imgindex.runtime.progress import Progress, shown
from imgindex.sinks.base import transfer
from imgindex.sinks.folder import FolderSink
from imgindex.sinks.formats import writer_of
from imgindex.sinks.options import ExportOptions
from imgindex.sinks.source import opened


@dataclass(frozen=True)
class Exported:
    """What was exported."""

    folder: str
    generation: str
    images: int  # whose vectors the folder holds
    dims: int
    removed: int | None = None  # ids that a target is to delete; None where an export is not one of changes


def export(
    output: str | Path,
    format: str,
    folder: str | Path,
    *,
    generation: str | None = None,
    normalize: bool = False,
    faiss_index: str | None = None,
    images: int | None = None,
    seed: int | None = None,
    since: str | None = None,
) -> Exported:
    """Writes the vectors of a generation, with what describes their images, to a folder for other tools.

    The folder appears whole, or stays as it was. The same generation gives the same bytes.

    Args:
      output: the directory of the index, also on an object store.
      format: one of `sinks.formats.FORMATS`.
      folder: a new or empty folder, or one of an earlier export, which is replaced.
      generation: its name; the live one by default.
      normalize: scale vectors to length 1, so that inner products are cosines.
      faiss_index: the index that FAISS is to make, in the words of its index factory; ``Flat`` by default.
      images: how many images at most; the rest is left out.
      seed: draws them, where there are more; 0 by default.
      since: a generation, of the same recipe: write only what has changed since that, and what is gone.

    Raises:
      UsageError: `format`, `generation` or `folder` does not fit, or `format` takes no such option.
      MachineError: the library of `format` is not installed.
      RecipeChangedError: the vectors of generation `since` were made in another way.
      OutputError: the index cannot be read, or `folder` not written.
      AfterPublishError: the export is complete, but what it replaced cannot be deleted.
    """
    options = ExportOptions(normalize, faiss_index, images, seed, since)
    write = writer_of(format, options)
    root = Output(str(output)).root
    sink = FolderSink(str(folder), format, write)
    if filesystem.is_local(root) and sink.folder.is_relative_to(os.path.realpath(root)):
        raise UsageError(f"{sink.folder} lies in the index; name a folder outside of it")
    progress = Progress()
    with (
        shown(progress, "exporting", "exported"),
        opened(root, generation, normalize=normalize, progress=progress) as source,
    ):
        transfer(source, sink)
    said = sink.description
    return Exported(str(sink.folder), said["generation"], said["images"], said["dims"], said.get("removed"))
