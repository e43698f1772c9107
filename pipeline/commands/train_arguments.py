"""The arguments of `imgindex train`."""

import argparse
from pathlib import Path

from imgindex.commands.argument_values import whole_number, whole_numbers
from imgindex.models.pooling import POOLINGS
from imgindex.models.training.defaults import DEFAULT_BASE, DEFAULTS
from imgindex.models.training.results import AUGMENTATIONS, METHODS

_EPOCHS = ", ".join(f"{DEFAULTS[method].epochs} for {method}" for method in METHODS)


def add_train(train: argparse.ArgumentParser) -> None:
    """Adds them."""
    train.epilog = (
        "The same command again goes on with a training that was stopped. The model's card, MODEL.card.json, "
        "says how good it is; a build takes it by --set backbone.name=MODEL.keras. Exit codes: 0 done, or "
        "finished before; 2 bad usage; 3 the images or this machine are in trouble; 130 and 143 stopped by "
        "SIGINT and SIGTERM."
    )
    train.add_argument(
        "directory", metavar="DIR", help="a directory that has a folder of images for each class; or has the "
        "folders train, and validation or test, with such folders in them",
    )  # fmt: skip
    train.add_argument(
        "--output",
        metavar="MODEL.keras",
        required=True,
        help="the model to write; with --ladder a folder of them",
    )
    train.add_argument(
        "--method", choices=METHODS, help="scratch: train all layers from random weights; "
        "transfer: train a classifier on the base as it is; finetune: a classifier, then also the last "
        "layers of the base; init: all layers from the base's weights",
    )  # fmt: skip
    train.add_argument(
        "--base", metavar="NAME|PATH", default=DEFAULT_BASE, help="a keras.applications model, a .keras "
        "file or a KerasHub preset's folder; with --method scratch also ResNet18 and ResNet34 (default: "
        "%(default)s)",
    )  # fmt: skip
    train.add_argument(
        "--weights",
        metavar="WORD|PATH",
        help="the base's weights: imagenet, bundled or a .h5 file (default: imagenet)",
    )
    train.add_argument(
        "--image_size", metavar="N", type=whole_number, help="side of the square that images are resized to, "
        "in pixels (default: the base's own)",
    )  # fmt: skip
    train.add_argument(
        "--pooling", choices=POOLINGS, default="avg", help="how the classifier's features are pooled "
        "(default: %(default)s)",
    )  # fmt: skip
    train.add_argument(
        "--augment", choices=AUGMENTATIONS, help="how much training images are changed at random: light "
        "mirrors, shifts and scales them; strong also turns them and changes their colors (default: none for "
        "transfer, else light)",
    )  # fmt: skip
    train.add_argument(
        "--epochs", metavar="N", type=whole_number, help="the most passes over the images; finetune trains "
        f"its classifier before them (default: {_EPOCHS})",
    )  # fmt: skip
    train.add_argument(
        "--patience", metavar="N", type=whole_number, help="stop after so many epochs without a lower "
        "validation loss (default: the method's)",
    )  # fmt: skip
    train.add_argument(
        "--learning_rate", metavar="X", type=float, help="the largest learning rate (default: the method's)"
    )
    train.add_argument(
        "--batch_size", metavar="N", type=whole_number, default=32, help="images of a step (default: 32)"
    )
    train.add_argument(
        "--freeze_layers", metavar="N", type=whole_number, help="with --method finetune: how many of the "
        "base's first layers stay as they are (default: two thirds)",
    )  # fmt: skip
    train.add_argument(
        "--seed", metavar="N", type=whole_number, help="draws the split, the order of the images, "
        "their changes and random weights (default: 0)",
    )  # fmt: skip
    train.add_argument(
        "--ladder", action="store_true", help="train by every method on the same split, and measure each "
        "backbone on an index of the test images; goes on where it was",
    )  # fmt: skip
    train.add_argument(
        "--seeds", metavar="N,N", type=whole_numbers, help="with --ladder: a run for each; the table has the "
        "mean and the standard deviation (default: 0)",
    )  # fmt: skip
    train.add_argument(
        "--json", metavar="FILE", type=Path, help="with --ladder: also write everything to a JSON file"
    )
    train.add_argument("--html", metavar="FILE", type=Path, help="with --ladder: also write a page")
    train.add_argument(
        "--threads", metavar="N", type=whole_number, help="threads to compute with; with 1 the same command "
        "gives the same weights, bit by bit (default: one a core)",
    )  # fmt: skip
