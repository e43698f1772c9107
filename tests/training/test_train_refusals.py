"""What `imgindex train` refuses before any work, and in which words."""

from collections.abc import Callable
from pathlib import Path

import pytest

import imgindex
from imgindex.cli import main
from imgindex.errors import InputError, UsageError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "tranfer"}, "--method is 'tranfer': expected one of scratch, transfer, finetune, init"),
        ({"augment": "much"}, "--augment is 'much': expected one of none, light, strong"),
        ({"base": "ResNet5"}, r"--base 'ResNet5' is unknown \(did you mean ResNet50"),
        ({"base": "pixels"}, "--base is pixels, which has nothing to train"),
        ({"base": "none.keras"}, "--base: no such file: none.keras"),
        ({"weights": "bundled"}, "--weights is bundled, but the package bundles weights of MobileNetV2 only"),
        ({"weights": "no.h5"}, "--weights: no such file: no.h5"),
        ({"weights": "none"}, "--method init begins with pretrained weights"),
        ({"method": "scratch", "weights": "imagenet"}, "--method scratch begins with random weights"),
        ({"image_size": 16}, "--image_size is 16: expected a side in pixels"),
        ({"pooling": "min"}, "--pooling is 'min': expected one of avg, max"),
        ({"epochs": 0}, "--epochs is 0: expected a whole number of at least 1"),
        ({"seed": -1}, "--seed is -1: expected a whole number of at least 0"),
        ({"batch_size": 0}, "--batch_size is 0"),
        ({"learning_rate": 0.0}, "--learning_rate is 0.0: expected a number above 0"),
        ({"freeze_layers": 3}, "--freeze_layers goes with --method finetune"),
    ],
)
def test_a_setting_that_cannot_be_right_is_refused(
    tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        imgindex.train(str(tmp_path), str(tmp_path / "model.keras"), **{"method": "init", **settings})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("output", ["model.h5", "s3://bucket/model.keras"])
def test_an_output_that_is_no_local_keras_file_is_refused(tmp_path: Path, output: str) -> None:
    with pytest.raises(UsageError, match=r"expected the path of a local file that ends in \.keras"):
        imgindex.train(str(tmp_path), output, method="init")


def train(folder: Path) -> None:
    output = folder.parent / "model.keras"
    imgindex.train(
        str(folder), str(output), method="init", base="MobileNetV2", weights="bundled", image_size=32
    )


def test_a_folder_without_images_or_labels_is_refused(
    tmp_path: Path, image_bytes: Callable[..., bytes]
) -> None:
    folder = tmp_path / "photos"
    with pytest.raises(InputError, match="photos does not exist: give a directory that has a folder"):
        train(folder)
    folder.mkdir()
    with pytest.raises(InputError, match="photos holds no image: give a directory"):
        train(folder)
    (folder / "0.png").write_bytes(image_bytes(0))
    with pytest.raises(InputError, match="photos holds 1 images, none of them in a folder of a class"):
        train(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"a": 5}, "all images have the label 'a'; a classifier needs two classes at least"),
        ({"a": 5, "b": 2}, "the class 'b' has 2 distinct images for training, and 3 are the fewest"),
    ],
)
def test_too_few_classes_or_images_are_refused(
    tmp_path: Path, image_bytes: Callable[..., bytes], counts: dict[str, int], message: str
) -> None:
    seed = 0
    for label, count in counts.items():
        for _ in range(count):
            seed += 1
            path = tmp_path / "photos" / label / f"{seed}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image_bytes(seed))
    with pytest.raises(InputError, match=message):
        train(tmp_path / "photos")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_the_command_says_what_is_wrong_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "train",
        str(tmp_path / "none"),
        "--output",
        str(tmp_path / "m.keras"),
        "--method",
        "scratch",
    ]
    assert main([*arguments, "--base", "ResNet5"]) == 2
    assert capsys.readouterr().err.startswith("imgindex: --base 'ResNet5' is unknown")
    assert main([*arguments, "--image_size", "32"]) == 3
    assert capsys.readouterr().err.startswith(
        f"imgindex: {tmp_path / 'none'} does not exist: give a directory"
    )
