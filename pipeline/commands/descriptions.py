"""What people read about a generation."""

from imgindex.errors import DamagedError
from imgindex.features.known_failures import MAX_TRIES
from imgindex.generations.layout import Output, current_name, generation_names, read_manifest
from imgindex.generations.manifest import Ledger, Manifest, RecordedSpec
from imgindex.inputs.skipped import described
from imgindex.io import filesystem
from imgindex.models.backbones import PIXELS
from imgindex.models.pca import WHITENED_IMAGES
from imgindex.text import counted, human_bytes, printable


def describe_generation(output: str, manifest: Manifest) -> str:
    """A published generation in a dozen lines."""
    ledger, timings, spec = manifest.ledger, manifest.timings, manifest.spec
    height, width = spec.image_size
    seconds = ", ".join(f"{stage} {timings[stage]:.1f}" for stage in timings if stage != "total")
    lines = [
        ("generation", manifest.generation),
        ("input", manifest.settings.input),
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
        ("backbone", f"{spec.backbone} {width}x{height}" + _of_model(spec)),
        ("engine", f"{manifest.engine.name} {manifest.engine.precision}"),
        ("vectors", f"{manifest.dims} of {manifest.feature_dim} dimensions, "
                    f"{manifest.explained_variance_ratio:.1%} of the variance"),
        ("basis", f"{'fitted' if manifest.pca.refit else 'kept'}: {manifest.pca.why}"),
        *((("whitening", _whitening(manifest)),) if _is_whitened(manifest) else ()),
        ("index", f"{counted(len(manifest.shards), 'shard')}, {human_bytes(manifest.size)} in all, metric "
                  f"{manifest.metric}"),
        ("recall", _recall(manifest)),
        ("seconds", f"{timings['total']:.1f} ({seconds})"),
        ("files", filesystem.join(output, "generations", manifest.generation)),
    ]  # fmt: skip
    return "\n".join(f"{printable(key):<12} {printable(text)}" for key, text in lines)


def _of_model(spec: RecordedSpec) -> str:
    if spec.backbone == PIXELS:
        return ", their RGB values"
    return f", {spec.pooling} pooling, weights {spec.weights_sha256[:12]}"


def _recall(manifest: Manifest) -> str:
    recall = manifest.recall
    if recall.distinct is not None and recall.distinct < 2:
        return "not measured: too few images, for there is nothing that one image could find"
    text = f"{recall.recall:.3f} at {recall.k}, with search_k {manifest.search_k}"
    if recall.distinct is not None:  # older builds measured it with copies, too
        text += f", of {recall.queries} of {recall.distinct} distinct images"
    return text


def _is_whitened(manifest: Manifest) -> bool:
    # Older builds did not write the ratio.
    return bool(manifest.settings.pca.whiten) and manifest.pca.scale_ratio is not None


def _whitening(manifest: Manifest) -> str:
    """By how much whitening amplifies, and a warning where it is noise."""
    pca, dims = manifest.pca, manifest.dims
    images = pca.fitted_images / dims
    text = f"dimension {dims} is scaled {pca.scale_ratio:.1f} times as much as dimension 1"
    if pca.cut:
        text += f"; {pca.cut} more were cut, as they hold only the rounding of float16"
    if images < WHITENED_IMAGES:
        text += (
            f". WARNING: it amplifies noise, for the basis was fitted to {images:.1f} images a dimension "
            f"and needs {WHITENED_IMAGES}; set pca.dims to at most "
            f"{max(1, pca.fitted_images // WHITENED_IMAGES)}, or pca.whiten to false"
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
