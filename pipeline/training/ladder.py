"""`imgindex train --ladder`: all methods on one split of a folder, beside the base as it is."""

import hashlib
import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from imgindex.config import BackboneConfig
from imgindex.errors import UsageError
from imgindex.io import filesystem
from imgindex.io.digest_json import seal, unseal
from imgindex.models.training.defaults import DEFAULT_BASE
from imgindex.models.training.resnets import RESNETS
from imgindex.models.training.results import METHODS, TrainingResult
from imgindex.training.card import read_card
from imgindex.training.ladder_results import UNTRAINED, LadderRun, Retrieval, TrainingLadder
from imgindex.training.retrieval import measure_retrieval
from imgindex.training.train import train

logger = logging.getLogger(__name__)

# The ranks that P@k looks at.
K = 4


def train_ladder(
    directory: str,
    output: str,
    *,
    base: str = DEFAULT_BASE,
    weights: str = "imagenet",
    image_size: int | None = None,
    pooling: str = "avg",
    augment: str | None = None,
    epochs: int | None = None,
    patience: int | None = None,
    batch_size: int = 32,
    seeds: Sequence[int] = (0,),
    threads: int | None = None,
) -> TrainingLadder:
    """Trains a base by every method, with every seed, and measures each backbone on an index of test images.

    A seed draws one split, which is the same for all methods. What is finished is not done again: a call that
    was ended goes on where it was.

    Args:
        directory: A folder of images for each class, as `train` takes it.
        output: A folder, in which each seed has one: a model for each method, with its card and page.
        base, weights, image_size, pooling: What the methods begin with; ``scratch`` takes random weights.
        augment, epochs, patience, batch_size: As `train` takes them, for all methods; None is each method's
            default.
        seeds: Each is a run of all methods.
        threads: As `train` takes it.

    Raises:
        UsageError: An argument is wrong, or `output` holds trainings with other settings.
        ImgindexError: What `train` and a build raise.
    """
    if base in RESNETS:
        raise UsageError(
            f"--base is {base}, which has no weights to begin with, and most methods of --ladder need some: "
            "give a keras.applications model, or the path of a .keras file"
        )
    if not seeds or len({*seeds}) < len(seeds):
        raise UsageError(f"--seeds is {','.join(map(str, seeds))}: expected whole numbers, each once")
    runs: list[LadderRun] = []
    results: list[TrainingResult] = []
    for seed in seeds:
        folder = Path(output, f"seed{seed}")
        trained = []
        for method in METHODS:
            logger.info("%s, seed %d", method, seed)
            model = folder / f"{method}.keras"
            result = train(
                directory,
                str(model),
                method=method,
                base=base,
                weights=None if method == "scratch" else weights,
                image_size=image_size,
                pooling=pooling,
                augment=augment,
                epochs=epochs,
                patience=patience,
                batch_size=batch_size,
                seed=seed,
                threads=threads,
            )
            trained.append(_run(result, directory, model))
            results.append(result)
        as_it_is = BackboneConfig(
            name=base, weights=weights, image_size=results[-1].image_size, pooling=pooling
        )
        uris = _test_images(folder / f"{METHODS[0]}.keras")
        found = _retrieval(folder / UNTRAINED, directory, uris, as_it_is, "")
        runs += [LadderRun(UNTRAINED, seed, retrieval=found), *trained]
    first = results[0]
    return TrainingLadder(
        directory=directory,
        base=base,
        weights=weights,
        image_size=first.image_size,
        pooling=pooling,
        resize=first.resize,
        augment=augment,
        classes=len(first.classes),
        split={part: sum(counts.values()) for part, counts in first.split.items()},
        seeds=tuple(seeds),
        k=K,
        runs=tuple(runs),
        versions=first.versions,
    )


def _run(result: TrainingResult, directory: str, model: Path) -> LadderRun:
    backbone = BackboneConfig(name=str(model), pooling=result.backbone_pooling)
    found = _retrieval(model.with_suffix(""), directory, _test_images(model), backbone, result.sha256)
    return LadderRun(
        method=result.method,
        seed=result.seed,
        accuracy=result.accuracy["test"],
        retrieval=found,
        seconds=result.seconds,
        parameters=result.parameters,
        trainable_parameters=result.trainable_parameters,
        epochs=len(result.epochs),
        best_epoch=result.best_epoch,
        model=f"{model.parent.name}/{model.name}",
        sha256=result.sha256,
    )


def _test_images(model: Path) -> list[str]:
    """The uris of the test images of a trained model."""
    card = read_card(str(model))
    return [] if card is None else card["test_images"]


def _retrieval(
    name: Path, directory: str, uris: Sequence[str], backbone: BackboneConfig, sha256: str
) -> Retrieval | None:
    """What `measure_retrieval` gives, or gave for the same model and images in an earlier call."""
    file = str(name.with_suffix(".retrieval.json"))
    asked = json.dumps([asdict(backbone), sha256, [*uris], K])
    digest = hashlib.sha256(asked.encode()).hexdigest()
    with suppress(ValueError, FileNotFoundError):  # damaged, or not there: it is measured anew
        kept = unseal(Path(file).read_bytes())
        if kept["of"] == digest:
            return None if kept["retrieval"] is None else Retrieval(**kept["retrieval"])
    logger.info("indexing %d test images with %s", len(uris), name)
    found = measure_retrieval(directory, uris, backbone, K)
    filesystem.write_bytes(file, seal({"of": digest, "retrieval": None if found is None else asdict(found)}))
    return found
