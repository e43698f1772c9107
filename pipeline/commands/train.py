"""The command `imgindex train`."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from imgindex.models.training.results import TrainingResult
from imgindex.runtime.standard_streams import encodable
from imgindex.text import counted, printable
from imgindex.training.card import card_path
from imgindex.training.train import train


def run(known: argparse.Namespace) -> None:
    """Trains, and prints how good the model is."""
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
        seed=known.seed,
        threads=known.threads,
    )
    print(encodable("\n".join(_lines(known.output, result))))


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
    yield f"wrote {model} and {printable(card_path(output).name)}"
    yield f"next: imgindex build --input … --output … --set backbone.name={printable(str(Path(output)))}"
