"""`imgindex.train`: from a labeled folder to a model that a build takes as its backbone."""

import logging
from contextlib import ExitStack
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

from imgindex.errors import UsageError
from imgindex.io import filesystem, written_files
from imgindex.io.asked_files import check_asked_files
from imgindex.io.output_lock import writer_lock
from imgindex.models.training.defaults import DEFAULT_BASE
from imgindex.models.training.reproducible import use_threads
from imgindex.models.training.results import TrainingResult
from imgindex.runtime import signals
from imgindex.runtime.resources import available_cores
from imgindex.training.card import card_path, page_path, read_card
from imgindex.training.run import run
from imgindex.training.settings import Settings, check_output, settled
from imgindex.training.work_folder import WorkFolder

logger = logging.getLogger(__name__)


def train(
    directory: str,
    output: str,
    *,
    method: str,
    base: str = DEFAULT_BASE,
    weights: str | None = None,
    image_size: int | None = None,
    pooling: str = "avg",
    augment: str | None = None,
    epochs: int | None = None,
    patience: int | None = None,
    learning_rate: float | None = None,
    batch_size: int = 32,
    freeze_layers: int | None = None,
    seed: int = 0,
    threads: int | None = None,
) -> TrainingResult:
    """Trains a network on a directory that has a folder of images for each class, and saves its backbone.

    A call that was ended goes on where it was if it is made again; one that is finished gives its result.

    Args:
        directory: The images. Where the folders at the top are ``train`` and ``validation`` or ``test``, they
            are the parts; otherwise a tenth of each class is for validation and a tenth for the test.
        output: Where to write the model, a ``.keras`` file; its card and its page are
            written beside it.
        method: ``scratch``: all layers, from random weights. ``transfer``: a new classifier on the base as it
            is. ``finetune``: a new classifier, then also the last layers of the base. ``init``: all layers,
            from the base's weights.
        base: A ``keras.applications`` name, the path of a ``.keras`` model or that of a KerasHub preset's
            folder, or for ``scratch`` also ``ResNet18`` or ``ResNet34``.
        weights: ``imagenet`` (the default), ``bundled`` or the path of a ``.h5`` file.
        image_size: Side of the square that images are resized to; by default the base's own.
        pooling: How the feature map becomes the feature that the classifier sees: ``avg``, ``max`` or
            ``gem``; ``cls`` takes the class token of a preset that has one.
        augment: ``none``, ``light`` or ``strong``; by default ``none`` for transfer, else ``light``.
        epochs: The most epochs.
        patience: Epochs without a lower validation loss after which the training ends.
        learning_rate: The largest learning rate, of Adam.
        batch_size: Images of a step.
        freeze_layers: For ``finetune`` how many of the base's first layers stay as they are; by default two
            thirds.
        seed: Decides the split, random weights, the order of the images and the augmentation.
        threads: How many threads TensorFlow computes with; with one a training can be repeated bit by bit.

    Raises:
        UsageError: An argument is wrong, or `output` is something else.
        InputError: The directory cannot be listed, or has too few classes or images.
        MachineError: KerasHub, which the base needs, cannot be loaded.
        WeightsUnavailableError: The ImageNet weights cannot be downloaded.
        OutputError: The output cannot be written, or another process writes it.
    """
    check_output(output)
    settings = settled(
        Settings(
            directory=directory,
            method=method,
            base=base,
            weights=weights,
            image_size=image_size,
            pooling=pooling,
            augment=augment,
            epochs=epochs,
            patience=patience,
            learning_rate=learning_rate,
            batch_size=batch_size,
            freeze_layers=freeze_layers,
            seed=seed,
        )
    )
    finished = _finished(output, settings)
    if finished is not None:
        logger.info("%s is finished already, by the same command", output)
        return finished
    work = WorkFolder(output)
    with filesystem.as_output_error("make the folder of", output):
        Path(output).parent.mkdir(parents=True, exist_ok=True)
    check_asked_files(str(work.path), page=page_path(output), json=card_path(output))
    with ExitStack() as stack:
        stack.enter_context(writer_lock(str(work.path)))
        stack.enter_context(signals.remarked("run the same command again to go on"))
        stack.enter_context(logging_redirect_tqdm())
        work.check(settings)
        use_threads(threads, available_cores())
        result = run(settings, output, work)
        work.remove()
    return result


def _finished(output: str, settings: Settings) -> TrainingResult | None:
    """The result of the same training, where it is finished; None where there is no model yet.

    Raises UsageError for a model that is not of this training.
    """
    if not filesystem.exists(output):
        return None
    card = read_card(output)
    if card is None:
        if WorkFolder(output).exists():  # it was ended before its card was written
            return None
        raise UsageError(f"{output} exists, and no card says how it was trained: choose another --output")
    result = TrainingResult.from_json(card)
    differences = settings.differences(card["settings"])
    if written_files.describe(Path(output), output).sha256 != result.sha256:
        differences = ["other bytes than its card says"]
    if differences:
        raise UsageError(f"{output} is finished, with {', '.join(differences)}: choose another --output")
    return result
