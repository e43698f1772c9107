"""The page of a training."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from imgindex.evaluation.report import charts
from imgindex.evaluation.report.fragments import (
    STYLE,
    beside,
    details,
    paragraph,
    section,
    table,
    terms,
)
from imgindex.evaluation.tables import percent
from imgindex.models.training.results import PARTS, Epoch, TrainingResult
from imgindex.search.page_frame import document
from imgindex.text import counted
from imgindex.training import confusion_matrix
from imgindex.training.confusion_matrix import Counts, Mistake

Rows = Sequence[tuple[str, ...]]

# Rows of a table that are shown at once, and of one that is shown on demand.
_ROWS, _MOST_ROWS = 12, 1000

METHODS: Mapping[str, str] = {
    "scratch": "all weights began at random.",
    "transfer": "the base stayed as it was, and only a classifier on its features was trained.",
    "finetune": "first a classifier on the base's features was trained, then the upper layers of the base "
    "with it, in small steps.",
    "init": "the base's weights were where the training of all layers began.",
}


def training_page(found: TrainingResult) -> str:
    """A self-contained HTML page of a training: how it went, what is confused, the split and the settings."""
    counts = np.asarray(found.confusion, np.int64).reshape(len(found.classes), len(found.classes))
    parts = [*_course(found), *_confusion(found, counts), *_classes(found, counts), *_settings(found)]
    images = {part: sum(found.split[part].values()) for part in PARTS}
    facts = [
        ("Method", found.method),
        ("Base", found.base),
        ("Accuracy on test images", percent(found.accuracy["test"])),
        ("Classes", f"{len(found.classes):,}"),
        ("Images", ", ".join(f"{count:,} {part}" for part, count in images.items())),
        ("Best epoch", f"{found.best_epoch} of {len(found.epochs)}"),
        ("Time", f"{found.seconds:,.0f} s"),
    ]
    style = STYLE + confusion_matrix.STYLE
    return document("What this training gave", facts, "\n".join(parts), style=style)


def _course(found: TrainingResult) -> Iterator[str]:
    if not found.epochs:
        yield section("How the training went", paragraph("No epoch was run."))
        return
    best = found.epochs[found.best_epoch - 1]
    text = (
        f"The weights of epoch {found.best_epoch} were kept. After it {percent(best.validation_accuracy)} of "
        "the validation images were classified right; of the test images, which played no part in the "
        f"training, it is {percent(found.accuracy['test'])}."
    )
    meanings = {
        "epoch": "one pass over all training images.",
        "loss": "the mean cross-entropy: 0 if the right class gets all the probability.",
        "accuracy": "the share of images that are classified right.",
        "train": "as the epoch saw the images: augmented, and while the weights still changed.",
        "validation": "after the epoch, on images that it was not trained with.",
    }
    losses = {
        "train": [epoch.loss for epoch in found.epochs],
        "validation": [epoch.validation_loss for epoch in found.epochs],
    }
    shares = {
        "train": [100 * epoch.accuracy for epoch in found.epochs],
        "validation": [100 * epoch.validation_accuracy for epoch in found.epochs],
    }
    at_best = f"best epoch {found.best_epoch} of {len(found.epochs)}"
    yield section(
        "How the training went",
        paragraph(text),
        terms(meanings),
        beside(
            charts.by_epoch(
                losses,
                "loss",
                f"Loss by epoch: {at_best}, validation {best.validation_loss:.3f}",
                best=found.best_epoch,
            ),
            charts.by_epoch(
                shares,
                "accuracy in %",
                f"Accuracy by epoch: {at_best}, validation {percent(best.validation_accuracy)}",
                best=found.best_epoch,
                percent=True,
            ),
        ),
        details(
            f"All {counted(len(found.epochs), 'epoch')}",
            table(_epoch_rows(found.epochs, found.best_epoch), "Epochs"),
        ),
    )


def _epoch_rows(epochs: Sequence[Epoch], best: int) -> Rows:
    return [
        ("epoch", "loss", "accuracy", "validation loss", "validation accuracy", "seconds"),
        *(
            (
                f"{epoch.number}{' (best)' if epoch.number == best else ''}",
                f"{epoch.loss:.4f}",
                percent(epoch.accuracy),
                f"{epoch.validation_loss:.4f}",
                percent(epoch.validation_accuracy),
                f"{epoch.seconds:.1f}",
            )
            for epoch in epochs
        ),
    ]


def _confusion(found: TrainingResult, counts: Counts) -> Iterator[str]:
    total, right = int(counts.sum()), int(np.trace(counts))
    wrong = confusion_matrix.mistakes(counts)
    drawn = confusion_matrix.drawn_classes(counts)
    text = (
        f"{right:,} of {counted(total, 'test image')} {'is' if total == 1 else 'are'} classified right. Each "
        "row of the matrix is a class, and each column what its images are taken for: what lies on the "
        "diagonal is right."
    )
    if len(drawn) < len(found.classes):
        text += f" It shows the {len(drawn)} of {len(found.classes):,} classes that are confused most."
    caption = f"Confusion matrix: {right:,} of {total:,} test images are right"
    if wrong:
        first = wrong[0]
        caption += f"; most often {found.classes[first.actual]} is taken for {found.classes[first.predicted]}"
    picture = confusion_matrix.matrix(
        counts[np.ix_(drawn, drawn)], [found.classes[number] for number in drawn], caption
    )
    if not wrong:
        yield section("What is confused", paragraph(text), picture, paragraph("No test image is wrong."))
        return
    shown = table(_mistake_rows(found.classes, wrong[:_ROWS]), "Most confused")
    more = wrong[_ROWS:_MOST_ROWS]
    rest = (
        details(
            f"{counted(len(more), 'more pair')} of classes", table(_mistake_rows(found.classes, more), "More")
        )
        if more
        else ""
    )
    yield section("What is confused", paragraph(text), picture, beside(shown), rest)


def _mistake_rows(classes: Sequence[str], wrong: Sequence[Mistake]) -> Rows:
    return [
        ("class", "taken for", "images", "of the class"),
        *(
            (classes[each.actual], classes[each.predicted], f"{each.images:,}", percent(each.share))
            for each in wrong
        ),
    ]


def _classes(found: TrainingResult, counts: Counts) -> Iterator[str]:
    right, actual, predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    rows = [
        (
            name,
            *(f"{found.split[part].get(name, 0):,}" for part in PARTS),
            percent(right[place] / actual[place]) if actual[place] else "-",
            percent(right[place] / predicted[place]) if predicted[place] else "-",
        )
        for place, name in enumerate(found.classes)
    ]
    shares = np.divide(right, actual, out=np.ones(len(rows)), where=actual > 0)
    worst_first = [rows[place] for place in np.argsort(shares, kind="stable")]
    head = ("class, worst first", *PARTS, "recall", "precision")
    text = (
        "How many images of each class are in each part of the split, and how well the test images are "
        "classified. The split is drawn for each class by itself, with the seed."
    )
    meanings = {
        "train": "what the weights were fitted to.",
        "validation": "what decided which epoch's weights were kept, and when to stop.",
        "test": "what took part in neither.",
        "recall": "the share of the class's test images that are classified right.",
        "precision": "the share of the test images classified as this class that belong to it.",
    }
    first, more = worst_first[:_ROWS], worst_first[_ROWS : _ROWS + _MOST_ROWS]
    yield section(
        "Classes and split",
        paragraph(text),
        terms(meanings),
        beside(table([head, *first], "Classes and split")),
        details(counted(len(more), "more class", "more classes"), table([head, *more], "More classes"))
        if more
        else "",
    )


def _settings(found: TrainingResult) -> Iterator[str]:
    settings = {
        "method": f"{found.method}: {METHODS[found.method]}",
        "base": found.base,
        "weights": found.weights,
        "image size": f"{found.image_size} x {found.image_size} pixels, {found.resize}",
        "pooling": found.pooling,
        "augmentation": found.augment,
        "seed": f"{found.seed}",
        "parameters": f"{found.parameters:,}, of which {found.trainable_parameters:,} were trained",
        "versions": ", ".join(f"{name} {version}" for name, version in found.versions.items()),
        "SHA-256 of the model": found.sha256,
    }
    yield section("Settings", terms(settings))
