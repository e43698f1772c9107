"""The backbone `pixels` and the engine numpy: what they compute, and what settings they take."""

from dataclasses import replace

import numpy as np
import pytest

from imgindex import BackboneConfig, Config, EngineConfig, load_config
from imgindex.errors import UnsupportedModelError, UsageError
from imgindex.models.backbones import load_backbone
from imgindex.models.batches import embed_all
from imgindex.models.engines.loading import load_engine
from imgindex.models.engines.protocol import Engine, EngineChoice
from imgindex.models.engines.selection import choose_engine

CHOICE = EngineChoice("pixels", "imagenet", "avg", None, "numpy", "float32", 4)


def choose(**options: object) -> EngineChoice:
    settings = {"engine": "auto", "precision": "auto", "batch_size": None, **options}
    return choose_engine(
        "pixels",
        "imagenet",
        "avg",
        None,
        sample=lambda resizing, count: np.zeros((0, *resizing.size, 3), np.uint8),
        **settings,
    )  # type: ignore[arg-type]


def load(image_size: int | None = None) -> Engine:
    return load_engine(replace(CHOICE, image_size=image_size), 2)


def test_a_feature_is_the_pixels_by_row_column_and_channel() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (7, 32, 32, 3), np.uint8)
    features = embed_all(load(), pixels)
    assert features.dtype == np.float32
    assert features.shape == (7, load().feature_dim) == (7, 3072)
    for row, column, channel in ((0, 0, 0), (0, 0, 2), (0, 5, 1), (31, 31, 2)):
        place = 3 * (32 * row + column) + channel
        assert (features[:, place] == pixels[:, row, column, channel]).all()


def test_other_sizes_have_other_specs() -> None:
    assert load(48).feature_dim == 3 * 48 * 48
    assert load(48).image_size == (48, 48)
    assert load(48).spec.digest != load(32).spec.digest
    assert load(None).spec.digest == load(32).spec.digest


def test_the_spec_is_always_the_same() -> None:
    """A store of features is found by it."""
    assert load().spec.digest == "449fc0f248fcb909"


def test_auto_is_numpy_in_float32() -> None:
    chosen = choose()
    assert (chosen.engine, chosen.precision, chosen.batch_size) == ("numpy", "float32", 16)
    assert choose(engine="numpy", batch_size=3).batch_size == 3
    with pytest.raises(UsageError, match=r"'bfloat16'; numpy on this machine runs float32$"):
        choose(precision="bfloat16")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": "bundled"}, "backbone.weights is 'bundled', but the backbone pixels has no weights"),
        (
            {"weights": "/some/file.h5"},
            r"backbone.weights is '/some/file.h5', but the backbone pixels has no",
        ),
        ({"pooling": "max"}, "backbone.pooling is 'max', but the backbone pixels has nothing to pool"),
        ({"output": "top"}, "backbone.output is 'top', but pixels is no .keras model"),
        ({"image_size": 224}, "backbone.image_size is 224: the backbone pixels takes a side of at most 64"),
        ({"image_size": 8}, "backbone.image_size"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BackboneConfig(name="pixels", **settings)  # type: ignore[arg-type]


def test_settings_with_a_meaning() -> None:
    for settings in ({}, {"weights": "none"}, {"image_size": 32}, {"image_size": 64}):
        for engine in ("auto", "numpy"):
            backbone = BackboneConfig(name="pixels", **settings)  # type: ignore[arg-type]
            assert Config(backbone=backbone, engine=EngineConfig(name=engine)).backbone == backbone


@pytest.mark.parametrize("engine", ["openvino", "tensorflow"])
def test_other_engines_do_not_run_it(engine: str) -> None:
    message = f"engine.name is '{engine}', but the engine {engine} does not run the backbone pixels"
    with pytest.raises(UsageError, match=message):
        load_config(None, ["backbone.name=pixels", f"engine.name={engine}"])
    with pytest.raises(UsageError, match=message):
        choose(engine=engine)
    with pytest.raises(UnsupportedModelError, match="use the engine numpy"):
        load_engine(replace(CHOICE, engine=engine), 2)


def test_its_engine_runs_nothing_else() -> None:
    with pytest.raises(
        UsageError, match=r"engine numpy does not run the backbone ResNet50: leave engine.name"
    ):
        load_config(None, ["engine.name=numpy"])
    with pytest.raises(UnsupportedModelError, match="runs the backbone pixels only, not MobileNetV2"):
        load_engine(replace(CHOICE, name="MobileNetV2"), 2)
    with pytest.raises(UnsupportedModelError, match="no Keras model"):
        load_backbone("pixels", "imagenet", "avg", None)


def test_a_misspelled_name_is_told() -> None:
    with pytest.raises(UsageError, match="did you mean pixels"):
        BackboneConfig(name="pixel")
