"""One run of a training: images in, a model with its card and its page out."""

import functools
import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from imgindex.config import ImagesConfig
from imgindex.errors import UsageError
from imgindex.io import filesystem, written_files
from imgindex.models.backbones import Core, load_core
from imgindex.models.frameworks import settled_keras, version_of
from imgindex.models.resizing import Resizing
from imgindex.models.training.datasets import Examples, batches
from imgindex.models.training.fit import Training
from imgindex.models.training.judge import judge
from imgindex.models.training.methods import stages
from imgindex.models.training.networks import Network, build_network, freeze
from imgindex.models.training.precision import mixed_precision, uses_bfloat16
from imgindex.models.training.resnets import RESNETS, new_resnet
from imgindex.models.training.results import PARTS, TrainingResult
from imgindex.models.training.split import TEST, TRAIN, LabeledImage, counts, split, without_copies
from imgindex.models.training.state import State
from imgindex.runtime.progress import Progress, shown
from imgindex.text import counted, printable
from imgindex.training.card import LeftOut, page_path, write_card
from imgindex.training.labeled_folder import Decoded, decode, list_labeled
from imgindex.training.page import training_page
from imgindex.training.settings import Settings, in_flags
from imgindex.training.work_folder import WorkFolder

logger = logging.getLogger(__name__)

Parts = Mapping[str, Sequence[LabeledImage]]

# How images become squares: as a build makes them for a saved model by default, whatever the base was given.
_RESIZE = "stretch"

# Files that are named where they are left out.
_MOST_NAMED = 5


def run(settings: Settings, output: str, work: WorkFolder) -> TrainingResult:
    """Trains, from where `work` says that an earlier run was, and writes the model, its card and its page.

    Raises what `train` does.
    """
    began = time.monotonic()
    core = _load_base(settings)
    decoded, left_out = _decoded(settings, core, work)
    distinct = without_copies(decoded.images)
    left_out = replace(left_out, copies=distinct.copies, contradictory=distinct.contradictory)
    _tell(left_out)
    parts = split(distinct.images, settings.seed)
    work.begin(settings, _digest(parts))
    classes = tuple(sorted({image.label for image in distinct.images}))
    network = build_network(
        core,
        settings.pooling,
        len(classes),
        from_scratch=settings.method == "scratch" and settings.base not in RESNETS,
        augment=settings.augment or "none",
        seed=settings.seed,
    )
    state = work.state()
    before = state.seconds

    def save(state: State) -> None:
        state.seconds = before + time.monotonic() - began
        work.save(state)

    progress = Progress()
    training = _training(settings, network, _examples(decoded, parts, classes), work, save, progress)
    with shown(progress, "training", "trained on"):
        progress.expect(sum(stage.epochs for stage in training.stages) * len(parts[TRAIN]))
        progress.advance(len(state.epochs) * len(parts[TRAIN]))
        with mixed_precision(network, wanted=uses_bfloat16()):
            training.run(state)
    accuracy, confusion = judge(training)
    trained = network.trainable_parameters()
    sha256 = _save_model(network, output, work)
    result = TrainingResult(
        method=settings.method,
        base=settings.base,
        weights=settings.weights or "none",
        image_size=core.image_size[0],
        pooling=settings.pooling,
        resize=_RESIZE,
        augment=settings.augment or "none",
        seed=settings.seed,
        classes=classes,
        split=counts(parts, classes),
        epochs=tuple(state.epochs),
        best_epoch=state.best_epoch,
        accuracy=accuracy,
        confusion=confusion,
        parameters=network.parameters(),
        trainable_parameters=trained,
        seconds=before + time.monotonic() - began,
        versions={name: version_of(name) for name in ("imgindex", "keras", "tensorflow")},
        sha256=sha256,
    )
    filesystem.write_bytes(str(page_path(output)), training_page(result).encode())
    # The last, for it says that the training is finished.
    write_card(output, settings, result, [image.uri for image in parts[TEST]], left_out)
    return result


def _load_base(settings: Settings) -> Core:
    if settings.base in RESNETS:
        return new_resnet(settings.base, settings.image_size, settings.seed)
    try:
        # All but the class token is pooled outside of what is saved.
        pooling = "cls" if settings.pooling == "cls" else None
        return load_core(
            settings.base, settings.weights or "none", pooling, settings.image_size, seed=settings.seed
        )
    except UsageError as error:
        raise in_flags(error) from error


def _decoded(settings: Settings, core: Core, work: WorkFolder) -> tuple[Decoded, LeftOut]:
    images = ImagesConfig()
    listed, failures = list_labeled(settings.directory, images)
    progress = Progress()
    with shown(progress, "decoding", "decoded"):
        progress.expect(len(listed))
        resizing = Resizing(core.image_size, _RESIZE)
        decoded = decode(listed, resizing, images, work.pixels, progress.advance)
    return decoded, LeftOut(0, (), (*failures, *decoded.failures))


def _tell(left_out: LeftOut) -> None:
    """Says which files the training does not use."""
    for failure in left_out.failures[:_MOST_NAMED]:
        logger.warning(
            "left out %s: %s: %s", printable(failure.uri), failure.reason, printable(failure.message)
        )
    if len(left_out.failures) > _MOST_NAMED:
        logger.warning("left out %d files more; the card lists all", len(left_out.failures) - _MOST_NAMED)
    if left_out.copies:
        logger.info("left out %s of other images", counted(left_out.copies, "copy", "copies"))
    for uris in left_out.contradictory[:_MOST_NAMED]:
        logger.warning("left out %s: the same image has several labels", printable(" and ".join(uris)))


def _digest(parts: Parts) -> str:
    """A digest of which image is in which part, with which label."""
    digest = hashlib.sha256()
    for part in PARTS:
        for image in parts[part]:
            digest.update(f"{part}\0{image.label}\0{image.uri}\0{image.sha256}\n".encode())
    return digest.hexdigest()


def _examples(decoded: Decoded, parts: Parts, classes: Sequence[str]) -> Examples:
    number_of = {label: number for number, label in enumerate(classes)}
    numbers = np.full(len(decoded.pixels), -1)
    for images in parts.values():
        for image in images:
            numbers[image.position] = number_of[image.label]
    positions = {part: np.array([image.position for image in parts[part]], np.int64) for part in PARTS}
    return Examples(decoded.pixels, numbers, positions)


def _training(
    settings: Settings,
    network: Network,
    pixels: Examples,
    work: WorkFolder,
    save: Callable[[State], None],
    progress: Progress,
) -> Training:
    def compute() -> npt.NDArray[np.float32]:
        every = np.arange(len(pixels.inputs))
        with settled_keras():
            features: npt.NDArray[np.float32] = network.features.predict(
                batches(pixels, every, settings.batch_size), verbose=0
            )
        return features

    @functools.cache
    def features() -> Examples:
        return replace(pixels, inputs=work.features(compute))

    return Training(
        network,
        stages(
            settings.method,
            network,
            settings.augment or "none",
            settings.epochs,
            settings.learning_rate,
            settings.patience,
            settings.freeze_layers,
        ),
        pixels,
        features,
        settings.batch_size,
        settings.seed,
        save,
        progress.advance,
    )


def _save_model(network: Network, output: str, work: WorkFolder) -> str:
    """Saves the backbone, whole or not at all; gives the digest of its file."""
    with settled_keras():
        freeze(network, 0)
        network.backbone.save(work.model)
    sha256 = written_files.describe(work.model, output).sha256
    with filesystem.staged(output) as partial:
        work.model.replace(partial)
    return sha256
