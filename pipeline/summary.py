"""What people read: a generation, search results as a table or a page."""

from collections.abc import Sequence
from pathlib import Path

from imgindex import gallery, storage
from imgindex.errors import DamagedError, OutputError, printable
from imgindex.failures import MAX_TRIES
from imgindex.generation import Output, current_name, generation_names, read_manifest
from imgindex.manifest import Ledger, Manifest
from imgindex.members import read_image
from imgindex.names import name_of
from imgindex.results import Neighbor, Result, describe_error
from imgindex.search import Index
from imgindex.skipped import described
from imgindex.standard_streams import quiet_libraries
from imgindex.text import counted

# Images that a whitened dimension must have been fitted to. On 600 photos whitening cost half a point of P@4
# at 30 images a dimension, 5 at 12, 10 at 6 and 14 at 4.
_WHITENED_IMAGES = 30


def describe_generation(output: str, manifest: Manifest) -> str:
    """A published generation in a dozen lines."""
    ledger, timings, spec = manifest.ledger, manifest.timings, manifest.spec
    height, width = spec.image_size
    seconds = ", ".join(f"{stage} {timings[stage]:.1f}" for stage in timings if stage != "total")
    lines = [
        ("generation", manifest.generation),
        ("input", manifest.config["input"]),
        ("images", f"{ledger.listed} listed, {ledger.indexed} indexed, {ledger.failed} failed"),
        *((f"  {reason}", str(count)) for reason, count in ledger.failed_by_reason.items()),
        *((("  of these", f"{ledger.environmental} environmental, which {MAX_TRIES} builds try"),)
          if ledger.environmental else ()),
        *((("skipped", described(ledger.skipped)),) if ledger.skipped else ()),
        ("changes", f"{ledger.added} added, {ledger.changed} changed, {ledger.removed} removed, "
                    f"{ledger.unchanged} unchanged"),
        ("features", f"{ledger.embedded} computed, {ledger.copied} copied from images of the same "
                     f"bytes, {ledger.reused} from the store"),
        *((("store", _damaged_chunks(ledger)),) if ledger.damaged_chunks else ()),
        ("backbone", f"{spec.backbone} {width}x{height}, {spec.pooling} pooling, "
                     f"weights {spec.weights_sha256[:12]}"),
        ("engine", f"{manifest.engine.name} {manifest.engine.precision}"),
        ("vectors", f"{manifest.dims} of {manifest.feature_dim} dimensions, "
                    f"{manifest.explained_variance_ratio:.1%} of the variance"),
        ("basis", f"{'fitted' if manifest.pca.refit else 'kept'}: {manifest.pca.why}"),
        *((("whitening", _whitening(manifest)),) if _is_whitened(manifest) else ()),
        ("index", f"{counted(len(manifest.shards), 'shard')}, {human_bytes(manifest.size)} in all, metric "
                  f"{manifest.metric}"),
        ("recall", _recall(manifest)),
        ("seconds", f"{timings['total']:.1f} ({seconds})"),
        ("files", storage.join(output, "generations", manifest.generation)),
    ]  # fmt: skip
    return "\n".join(f"{printable(key):<12} {printable(text)}" for key, text in lines)


def _recall(manifest: Manifest) -> str:
    recall = manifest.recall
    text = f"{recall.recall:.3f} at {recall.k}, with search_k {manifest.search_k}"
    if recall.distinct is not None:  # older builds measured it with copies, too
        text += f", of {recall.queries} of {recall.distinct} distinct images"
    return text


def _is_whitened(manifest: Manifest) -> bool:
    return (
        bool(manifest.config["pca"]["whiten"]) and manifest.pca.scale_ratio is not None
    )  # not of older builds


def _whitening(manifest: Manifest) -> str:
    """By how much whitening amplifies, and a warning where it is noise."""
    pca, dims = manifest.pca, manifest.dims
    images = pca.fitted_images / dims
    text = f"dimension {dims} is scaled {pca.scale_ratio:.1f} times as much as dimension 1"
    if pca.cut:
        text += f"; {pca.cut} more were cut, as they hold only the rounding of float16"
    if images < _WHITENED_IMAGES:
        text += (
            f". WARNING: it amplifies noise, for the basis was fitted to {images:.1f} images a dimension "
            f"and needs {_WHITENED_IMAGES}; set pca.dims to at most "
            f"{max(1, pca.fitted_images // _WHITENED_IMAGES)}, or pca.whiten to false"
        )
    return text


def describe_unchanged(manifest: Manifest, ledger: Ledger) -> str:
    """What is said where a build has nothing to publish."""
    return (
        f"nothing has changed: {counted(ledger.listed, 'image')} listed, "
        f"{ledger.unchanged} as they were indexed, {ledger.failed} failed as before; "
        f"{manifest.generation} stays live"
        + (f"; {_damaged_chunks(ledger)}" if ledger.damaged_chunks else "")
        + (f"; skipped: {described(ledger.skipped)}" if ledger.skipped else "")
    )


def _damaged_chunks(ledger: Ledger) -> str:
    files = counted(ledger.damaged_chunks, "damaged file was", "damaged files were")
    return f"{files} dropped from the store, and the images in it embedded again"


def describe_history(output: Output) -> str:
    """All complete generations of an output, a line each, oldest first."""
    live = current_name(output)
    lines = [f"{'generation':<26}{'images':>9}{'added':>8}{'changed':>9}{'removed':>9}{'recall':>8}  size"]
    for name in generation_names(output):
        try:
            manifest = read_manifest(output, name)
        except DamagedError:
            lines.append(
                f"{name:<26}{'its manifest cannot be used':>43}" + (", live" if name == live else "")
            )
            continue
        ledger = manifest.ledger
        size = human_bytes(manifest.size)
        lines.append(
            f"{name:<26}{ledger.indexed:>9}{ledger.added:>8}{ledger.changed:>9}"
            f"{ledger.removed:>9}{manifest.recall.recall:>8.3f}  {size}" + (", live" if name == live else "")
        )
    return "\n".join(lines)


def human_bytes(count: float) -> str:
    """`count` bytes in the largest fitting unit, to four digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"


def result_table(results: Sequence[Result], metric: str) -> str:
    """One block a query: rank, cosine similarity, copies and path of each neighbor.

    Under another `metric` than angular also the distance, which is then what they are sorted by.
    """
    blocks = []
    for result in results:
        columns = [("rank", [f"{n.rank}" for n in result.neighbors])]
        if metric != "angular":
            columns.append(("distance", [f"{n.distance:.4f}" for n in result.neighbors]))
        columns.append(("cosine", [f"{n.similarity:.3f}" for n in result.neighbors]))
        columns.append(("copies", [f"{n.copies}" for n in result.neighbors]))
        padded = []
        for name, values in columns:
            width = max(map(len, [name, *values]))
            padded.append([text.rjust(width) for text in (name, *values)])
        paths = ["path", *(printable(n.uri) for n in result.neighbors)]
        lines = ["  ".join(cells) for cells in zip(*padded, paths, strict=True)]
        blocks.append("\n".join([printable(result.query), *lines]))
    return "\n\n".join(blocks)


def result_page(index: Index, results: Sequence[Result], hidden: int = 0) -> str:
    """A self-contained HTML page of queries, which are paths, and their neighbors as thumbnails.

    It says that `hidden` more queries are not on it.
    """
    manifest = index.facts
    facts = [
        ("Index", str(index.output.root)),
        ("Generation", manifest.generation),
        ("Images", f"{len(index):,}"),
        ("Backbone", manifest.spec.backbone),
        ("Vectors", f"{manifest.dims} dimensions, {manifest.metric}"),
    ]
    rows = [
        gallery.Row(
            gallery.Tile(_image(index, name_of(result.query)), result.query.rpartition("/")[2], "query"),
            [_tile(index, neighbor) for neighbor in result.neighbors],
            *([describe_error(result.error)] if result.error else []),
        )
        for result in results
    ]
    more = f"{counted(hidden, 'more query is', 'more queries are')} not shown" if hidden else ""
    return gallery.render("Nearest images", facts, rows, more)


def write_page(path: Path, index: Index, results: Sequence[Result], hidden: int = 0) -> None:
    """Writes `result_page` to a file. Raises OutputError."""
    try:
        with quiet_libraries():
            page = result_page(index, results, hidden)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error


def _tile(index: Index, neighbor: Neighbor) -> gallery.Tile:
    details = [str(neighbor.rank)]
    if index.facts.metric != "angular":
        details.append(f"distance {neighbor.distance:.4f}")
    details.append(f"cosine {neighbor.similarity:.3f}")
    if neighbor.copies:
        details.append("1 copy" if neighbor.copies == 1 else f"{neighbor.copies:,} copies")
    try:
        image = _image(index, index.image_path(neighbor.uri))
    except OutputError:
        image = None
    return gallery.Tile(image, neighbor.uri, " · ".join(details))


def _image(index: Index, path: str) -> bytes | None:
    """The file of an image; None, of which the page says that it cannot be shown, where there is none."""
    try:
        return read_image(path, index.facts.config["images"]["max_bytes"])
    except (OSError, ValueError):  # a name that no filesystem takes is a ValueError
        return None
