"""The spec: what its digest depends on."""

import dataclasses
import json
from pathlib import Path

import pytest

from imgindex.models.backbones import load_backbone
from imgindex.models.spec import Spec

SPEC = Spec("ResNet50", "ab" * 32, (224, 224), "avg", "keras.preprocess", "decoded-1", "ef" * 32)


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "ResNet101"},
        {"weights_sha256": "cd" * 32},
        {"image_size": (224, 225)},
        {"image_size": (225, 224)},
        {"pooling": "max"},
        {"preprocessing": "keras.other"},
        {"decoding": "decoded-2"},
        {"layers_sha256": "cd" * 32},
        {"resize": "crop"},
        {"interpolation": "bicubic"},
        {"resize": "pad", "fill": (1, 2, 3)},
        {"mirror": True},
    ],
)
def test_each_field_changes_the_digest(change):
    changed = dataclasses.replace(SPEC, **change)
    assert changed != SPEC
    assert changed.digest != SPEC.digest


def test_every_field_is_tried():
    [tried] = test_each_field_changes_the_digest.pytestmark
    names = {name for change in tried.args[1] for name in change}
    assert names == {field.name for field in dataclasses.fields(Spec)}


def test_values_do_not_run_into_each_other():
    one = dataclasses.replace(SPEC, pooling="avg", preprocessing="x")
    other = dataclasses.replace(SPEC, pooling="av", preprocessing="gx")
    assert one.digest != other.digest


def test_digest_is_16_hexadecimal_digits_that_stay():
    assert SPEC.digest == dataclasses.replace(SPEC).digest
    # Stores on disk are named by it.
    assert SPEC.digest == "e363c5f2739d83a7"


def test_survives_json():
    for spec in (SPEC, dataclasses.replace(SPEC, resize="pad", fill=(1, 2, 3), mirror=True)):
        assert Spec.read(json.loads(json.dumps(spec.content))) == spec


def test_what_specs_did_not_have_once_is_written_only_where_it_is_another():
    added = {"resize", "interpolation", "fill", "mirror"}
    assert {field.name for field in dataclasses.fields(Spec)} - set(SPEC.content) == added
    padded = dataclasses.replace(SPEC, resize="pad", fill=(1, 2, 3))
    assert set(padded.content) - set(SPEC.content) == {"resize", "fill"}


@pytest.mark.long
def test_paths_of_weights_do_not_matter_and_weights_do(small_backbone, tmp_path: Path):
    core = next(layer for layer in small_backbone.model.layers if hasattr(layer, "layers"))
    paths = [tmp_path / "one.weights.h5", tmp_path / "elsewhere" / "two.weights.h5"]
    paths[1].parent.mkdir()
    for path in paths:
        core.save_weights(path)
    expected = Spec.of(small_backbone)
    for path in paths:
        loaded = Spec.of(load_backbone("MobileNetV2", str(path), "avg", 64))
        assert (loaded, loaded.digest) == (expected, expected.digest)
    other = Spec.of(load_backbone("MobileNetV2", "none", "avg", 64, seed=1))
    assert other == dataclasses.replace(expected, weights_sha256=other.weights_sha256)
    assert other.digest != expected.digest


def test_describes_the_backbone(small_backbone):
    spec = Spec.of(small_backbone)
    assert (spec.backbone, spec.image_size, spec.pooling) == ("MobileNetV2", (64, 64), "avg")
    assert spec.preprocessing == "keras.applications.mobilenet_v2.preprocess_input"
    assert spec.decoding
