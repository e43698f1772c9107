"""The command `imgindex train`."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from imgindex.config import BackboneConfig
from imgindex.errors import UsageError
from imgindex.io.asked_files import check_asked_files, write_text
from imgindex.models.training.results import METHODS, TrainingResult
from imgindex.runtime.standard_streams import encodable
from imgindex.text import counted, printable
from imgindex.training.card import card_path, page_path
from imgindex.training.train import train

# Arguments that go with one of the two alone.
_OF_ONE = ("method", "learning_rate", "freeze_layers", "seed")
_OF_LADDER = ("seeds", "json", "html")


def run(known: argparse.Namespace) -> None:
    """Trains, and prints how good the model is; with `--ladder` trains by all methods, and compares them."""
    strangers = [
        name for name in (_OF_ONE if known.ladder else _OF_LADDER) if getattr(known, name) is not None
    ]
    if strangers:
        goes = (
            "does not go with --ladder: leave one of them out"
            if known.ladder
            else "goes with --ladder: add it"
        )
        raise UsageError(f"--{strangers[0]} {goes}")
    if known.ladder:
        _climb(known)
        return
    if known.method is None:
        raise UsageError(f"--method is missing: expected one of {', '.join(METHODS)}, or --ladder for all")
    result = train(
        known.directory,
        known.output,
        method=known.method,
        base=known.base,
        weights=known.weights,
        image_size=known.image_size,
        pooling=known.pooling,
        augment=known.augment,
        epochs=known.epochs,
        patience=known.patience,
        learning_rate=known.learning_rate,
        batch_size=known.batch_size,
        freeze_layers=known.freeze_layers,
        seed=known.seed or 0,
        threads=known.threads,
    )
    print(encodable("\n".join(_lines(known.output, result))))


def _climb(known: argparse.Namespace) -> None:
    check_asked_files(known.output, page=known.html, json=known.json)
    # It loads Beam, which a single training does without.
    from imgindex.training.ladder import train_ladder
    from imgindex.training.ladder_tables import as_text

    ladder = train_ladder(
        known.directory,
        known.output,
        base=known.base,
        weights=known.weights or "imagenet",
        image_size=known.image_size,
        pooling=known.pooling,
        augment=known.augment,
        epochs=known.epochs,
        patience=known.patience,
        batch_size=known.batch_size,
        seeds=known.seeds or (0,),
        threads=known.threads,
    )
    print(encodable(as_text(ladder)))
    if known.json:
        write_text(known.json, f"{json.dumps(ladder.as_json(), indent=2, allow_nan=False)}\n")
    if known.html:
        from imgindex.training.ladder_page import ladder_page

        write_text(known.html, ladder_page(ladder))


def _lines(output: str, result: TrainingResult) -> Iterator[str]:
    images = {part: sum(of_classes.values()) for part, of_classes in result.split.items()}
    classes = counted(len(result.classes), "class", "classes")
    yield f"{result.method} of {printable(result.base)} on {classes}:"
    for part, count in images.items():
        yield f"  {part:<10}  {counted(count, 'image'):>12}  accuracy {result.accuracy[part]:.3f}"
    yield (
        f"  {counted(len(result.epochs), 'epoch')}, the best is {result.best_epoch}; "
        f"{result.trainable_parameters:,} of {result.parameters:,} parameters trained; {result.seconds:.0f} s"
    )
    model = printable(output)
    card, page = (printable(path(output).name) for path in (card_path, page_path))
    yield f"wrote {model}, {card} and {page}"
    pooling = result.backbone_pooling
    pooled = "" if pooling == BackboneConfig.pooling else f" --set backbone.pooling={pooling}"
    name = printable(str(Path(output)))
    yield f"next: imgindex build --input … --output … --set backbone.name={name}{pooled}"
