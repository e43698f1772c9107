"""Saved models as people have them: each gives what float32 Keras gives, by both engines, or says why not."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from long_runs import some_long
from PIL import Image

from imgindex.errors import UsageError
from imgindex.models.backbones import load_backbone
from imgindex.models.batches import embed_all
from imgindex.models.engines.loading import load_engine
from imgindex.models.engines.protocol import EngineChoice
from imgindex.models.engines.selection import choose_engine
from imgindex.models.frameworks import settled_keras
from imgindex.models.saved_models import gray
from imgindex.models.spec import Spec


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def pixels(height: int, width: int, count: int = 3) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def of_layers(shape: tuple[int, ...], *layers: Callable[[Any], Any], **options: Any) -> Callable[[Any], Any]:
    def build(keras: Any) -> Any:
        features = pixel = keras.Input(shape, **options)
        for layer in layers:
            features = layer(keras.layers)(features)
        return keras.Model(pixel, features)

    return build


def convolution(layers: Any) -> Any:
    return layers.Conv2D(6, 3)


def augmentation(layers: Any) -> Any:
    keras_layers = [
        layers.RandomFlip("horizontal"), layers.RandomRotation(0.2), layers.RandomZoom(0.3),
        layers.RandomTranslation(0.2, 0.2), layers.RandomContrast(0.5), layers.RandomBrightness(0.5),
    ]  # fmt: skip
    import keras

    return keras.Sequential(keras_layers)


def nested(layers: Any) -> Any:
    import keras

    inmost = keras.Sequential([keras.Input((26, 26, 4)), layers.Conv2D(3, 3)])
    return keras.Sequential([keras.Input((28, 28, 6)), layers.Conv2D(4, 3), inmost])


def adapted(layers: Any) -> Any:
    layer = layers.Normalization()
    layer.adapt(pixels(32, 32).astype(np.float32))
    return layer


def always_dropping(layers: Any) -> Any:
    return lambda features: layers.Dropout(0.5)(features, training=True)


MODELS = {
    "nested models": of_layers((30, 30, 3), convolution, nested),
    "Rescaling": of_layers((32, 32, 3), lambda layers: layers.Rescaling(1 / 127.5, offset=-1), convolution),
    "Normalization": of_layers((32, 32, 3), adapted, convolution),
    "augmentation": of_layers((32, 32, 3), augmentation, convolution),
    "random crop": of_layers((40, 40, 3), lambda layers: layers.RandomCrop(24, 24), convolution),
    "noise and dropout": of_layers(
        (32, 32, 3), lambda layers: layers.GaussianNoise(1.0), convolution, always_dropping,
        lambda layers: layers.BatchNormalization(),
    ),
    "other sides": of_layers((20, 50, 3), convolution),
    "few pixels": of_layers((8, 8, 3), convolution),
    "one channel": of_layers((28, 28, 1), convolution),
    "whole numbers": of_layers((32, 32, 3), lambda layers: layers.Rescaling(1 / 255), dtype="uint8"),
    "batches of one": of_layers((32, 32, 3), convolution, batch_size=1),
    "a Sequential": lambda keras: keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Conv2D(6, 3)]),
    "a list": lambda keras: _with_output(keras, lambda feature: [feature]),
    "a dict": lambda keras: _with_output(keras, lambda feature: {"feature": feature}),
    "a dict of inputs": lambda keras: _with_named_input(keras),
    "an input that is not needed": lambda keras: _with_two_inputs(keras, needed=False),
}  # fmt: skip


def _with_output(keras: Any, structure: Callable[[Any], Any]) -> Any:
    pixel = keras.Input((32, 32, 3))
    return keras.Model(pixel, structure(keras.layers.Conv2D(6, 3)(pixel)))


def _with_named_input(keras: Any) -> Any:
    pixel = keras.Input((32, 32, 3), name="image")
    return keras.Model({"image": pixel}, keras.layers.Conv2D(6, 3)(pixel))


def _with_two_inputs(keras: Any, needed: bool) -> Any:
    pixel, meta = keras.Input((32, 32, 3), name="image"), keras.Input((5,), name="meta")
    seen = keras.layers.GlobalAveragePooling2D(name="seen")(keras.layers.Conv2D(6, 3)(pixel))
    both = keras.layers.Concatenate(name="both")([seen, meta])
    return keras.Model([pixel, meta], both if needed else seen)


def _with_two_outputs(keras: Any) -> Any:
    pixel = keras.Input((32, 32, 3))
    maps = keras.layers.Conv2D(6, 3, name="maps")(pixel)
    pooled = keras.layers.GlobalAveragePooling2D(name="pooled")(maps)
    return keras.Model(pixel, [pooled, keras.layers.Dense(4, activation="softmax", name="classes")(pooled)])


@pytest.fixture
def saved(tmp_path: Path):
    """Saves a model; gives its path, and the model."""

    def save(build: Callable[[Any], Any]) -> tuple[str, Any]:
        with settled_keras() as keras:
            model = build(keras)
            model.save(tmp_path / "m.keras")
        return str(tmp_path / "m.keras"), model

    return save


def features_by(engine: str, name: str, images: np.ndarray, **changes: Any) -> np.ndarray:
    choice = EngineChoice(name, "imagenet", "avg", None, engine, "float32", 2, **changes)
    features = embed_all(load_engine(choice, 1), images)
    assert np.array_equal(features, embed_all(load_engine(choice, 1), images)), "it is not deterministic"
    return features


def keras_features(model: Any, images: np.ndarray) -> list[np.ndarray]:
    """What Keras gives in inference mode, image by image, averaged over places."""
    if model.inputs[0].shape[-1] == 1:
        images = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])[
            ..., np.newaxis
        ]
    given: Any = images.astype(np.float32)
    with settled_keras() as keras:
        rows = []
        for image in given:
            others = [np.ones((1, 5), np.float32)] * (len(model.inputs) - 1)
            answer = model([image[np.newaxis], *others] if others else image[np.newaxis], training=False)
            rows.append([np.asarray(tensor, np.float32) for tensor in keras.tree.flatten(answer)])
    outputs = [np.concatenate(output) for output in zip(*rows, strict=True)]
    return [output.mean(axis=(1, 2)) if output.ndim == 4 else output for output in outputs]


def assert_agree(found: np.ndarray, expected: np.ndarray, tolerance: float = 2e-5) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("kind", some_long(MODELS, "nested models", "Rescaling", "Normalization"))
def test_both_engines_give_what_keras_gives(kind: str, saved) -> None:
    name, model = saved(MODELS[kind])
    height, width = model.inputs[0].shape[1:3]
    images = pixels(height, width)
    [expected] = keras_features(model, images)
    for engine in ("openvino", "tensorflow"):
        assert_agree(features_by(engine, name, images), expected)


# float16 has 11 significant bits, bfloat16 8.
@pytest.mark.parametrize(("policy", "tolerance"), [("mixed_float16", 2e-3), ("mixed_bfloat16", 2e-2)])
@pytest.mark.long
def test_mixed_policies(policy: str, tolerance: float, saved) -> None:
    def build(keras: Any) -> Any:
        keras.config.set_dtype_policy(policy)
        layers = (
            lambda layers: layers.Rescaling(1 / 255),
            convolution,
            lambda layers: layers.Activation("relu"),
        )
        try:
            return of_layers((32, 32, 3), *layers)(keras)
        finally:
            keras.config.set_dtype_policy("float32")

    name, model = saved(build)
    images = pixels(32, 32)
    assert_agree(features_by("tensorflow", name, images), keras_features(model, images)[0], tolerance)
    # By default the engine is one that can run it: OpenVINO has no bfloat16 of a model's own.
    chosen = choose_engine(
        name, "imagenet", "avg", None, engine="auto", precision="float32", batch_size=2,
        sample=lambda size, count: images[:count],
    )  # fmt: skip
    assert (chosen.engine == "tensorflow") == (policy == "mixed_bfloat16")
    assert_agree(embed_all(load_engine(chosen, 1), images), keras_features(model, images)[0], tolerance)


@pytest.mark.long
def test_auto_compares_on_the_engine_that_can_run_the_model(saved, monkeypatch) -> None:
    for engine in ("openvino", "tensorflow"):
        monkeypatch.setattr(f"imgindex.models.engines.{engine}.has_bfloat16", lambda: True)
    name, _ = saved(of_layers((32, 32, 3), lambda layers: layers.Conv2D(4, 3, dtype="mixed_bfloat16")))
    options = {"batch_size": 2, "sample": lambda resizing, count: pixels(*resizing.size, count=count)}
    chosen = choose_engine(name, "imagenet", "avg", None, engine="auto", precision="auto", **options)
    assert (chosen.engine, chosen.cosine is None) == ("tensorflow", False)
    with pytest.raises(UsageError, match="set engine"):
        choose_engine(name, "imagenet", "avg", None, engine="openvino", precision="auto", **options)


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_gray_is_pillows(color: tuple[int, int, int]) -> None:
    image = np.full((1, 1, 1, 3), color, np.float32)
    assert gray(image) == Image.new("RGB", (1, 1), color).convert("L").getpixel((0, 0))


class TestSeveralOutputs:
    @pytest.mark.parametrize(
        ("output", "number"), [("pooled", 0), ("classes", 1), ("maps", 0)]
    )  # the last one is a layer, whose average is what is pooled
    def test_the_named_one_is_used(self, output: str, number: int, saved) -> None:
        name, model = saved(_with_two_outputs)
        images = pixels(32, 32)
        for engine in ("openvino", "tensorflow"):
            assert_agree(
                features_by(engine, name, images, output=output), keras_features(model, images)[number]
            )

    def test_each_is_another_spec(self, saved) -> None:
        name, _ = saved(_with_two_outputs)
        specs = [
            Spec.of(load_backbone(name, "none", "avg", None, output)) for output in ("pooled", "classes")
        ]
        assert specs[0].digest != specs[1].digest

    def test_keys_of_a_dict_are_names(self, saved) -> None:
        def build(keras: Any) -> Any:
            model = _with_two_outputs(keras)
            pooled, classes = model.outputs
            return keras.Model(model.inputs, {"z": pooled, "a": classes})

        name, _ = saved(build)
        dims = [load_backbone(name, "none", "avg", None, output).feature_dim for output in ("z", "a")]
        assert dims == [6, 4]

    def test_none_is_guessed(self, saved) -> None:
        name, _ = saved(_with_two_outputs)
        with pytest.raises(
            UsageError,
            match=r"2 outputs, pooled \[n, 6\] and classes \[n, 4\]: .* --set backbone.output=pooled",
        ):
            load_backbone(name, "none", "avg", None)

    def test_of_another_name(self, saved) -> None:
        name, _ = saved(_with_two_outputs)
        with pytest.raises(
            UsageError, match=r"'pooling', but .* are pooled, classes, its last layers .*maps"
        ):
            load_backbone(name, "none", "avg", None, "pooling")

    def test_the_only_one_may_be_named(self, saved) -> None:
        name, _ = saved(MODELS["a dict"])
        assert Spec.of(load_backbone(name, "none", "avg", None, "feature")) == Spec.of(
            load_backbone(name, "none", "avg", None)
        )

    def test_a_layer_of_a_sequential_may_be_named(self, saved) -> None:
        def build(keras: Any) -> Any:
            first, last = (keras.layers.Conv2D(dims, 3, name=f"conv{dims}") for dims in (6, 4))
            return keras.Sequential([keras.Input((32, 32, 3)), first, last])

        name, _ = saved(build)
        outputs = (None, "conv4", "conv6")
        dims = [load_backbone(name, "none", "avg", None, output).feature_dim for output in outputs]
        assert dims == [4, 4, 6]

    def test_an_application_has_one(self) -> None:
        with pytest.raises(UsageError, match=r"backbone.output is 'x', but MobileNetV2 is no .keras model"):
            load_backbone("MobileNetV2", "none", "avg", 32, "x")


def test_several_inputs_are_listed(saved) -> None:
    name, _ = saved(lambda keras: _with_two_inputs(keras, needed=True))
    with pytest.raises(UsageError, match=r"needs 2 inputs, image \[n, 32, 32, 3\] and meta \[n, 5\]"):
        load_backbone(name, "none", "avg", None)
    assert load_backbone(name, "none", "avg", None, "seen").feature_dim == 6


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (of_layers((3, 32, 32), lambda layers: layers.Permute((2, 3, 1))), "with channels first"),
        (of_layers((32, 32, 4), convolution), r"takes \[n, 32, 32, 4\]"),
        (of_layers((32, 32, 3), lambda layers: layers.Reshape((-1, 3))), r"gives \[n, 1024, 3\]"),
        (lambda keras: keras.Sequential([keras.layers.Dense(3)]), "build the model from a keras.Input"),
    ],
)
def test_what_cannot_be_used_is_said(build: Callable[[Any], Any], message: str, saved) -> None:
    name, _ = saved(build)
    with pytest.raises(UsageError, match=message) as caught:
        load_backbone(name, "none", "avg", None)
    assert len(str(caught.value).splitlines()) == 1


class TestOlderFiles:
    """Keras 2 writes another format into files of the same names."""

    def hdf5(self, saved, path: Path) -> str:
        import h5py

        _, model = saved(MODELS["other sides"])
        whole = path.with_name("whole.h5")
        model.save(whole)
        with h5py.File(whole, "r+") as file:
            file.attrs["keras_version"] = "2.15.0"
        return str(whole.rename(path))

    @pytest.mark.parametrize("file", ["old.h5", "old.keras"])
    def test_hdf5_names_its_version_and_what_to_do(self, file: str, saved, tmp_path: Path) -> None:
        name = self.hdf5(saved, tmp_path / file)
        with pytest.raises(
            UsageError, match=r"keras_version 2\.15\.0.* in Keras 3 run keras\.saving"
        ) as caught:
            load_backbone(name, "imagenet", "avg", None)
        assert len(str(caught.value).splitlines()) == 1

    def test_what_to_do_works(self, saved, tmp_path: Path) -> None:
        name, _ = saved(MODELS["other sides"])
        before = load_backbone(name, "imagenet", "avg", None)
        old = self.hdf5(saved, tmp_path / "old.h5")
        with settled_keras() as keras:
            keras.saving.load_model(old, compile=False).save(tmp_path / "new.keras")
        assert (
            load_backbone(str(tmp_path / "new.keras"), "imagenet", "avg", None).feature_dim
            == before.feature_dim
        )

    def test_an_archive_of_keras_2(self, tmp_path: Path) -> None:
        config = {"module": "keras.src.engine.functional", "class_name": "Functional", "config": {}}
        with zipfile.ZipFile(tmp_path / "old.keras", "w") as archive:
            archive.writestr("metadata.json", json.dumps({"keras_version": "2.15.0"}))
            archive.writestr("config.json", json.dumps(config))
            archive.writestr("model.weights.h5", b"")
        with pytest.raises(UsageError, match=r"Keras 2 saved this model \(keras_version 2\.15\.0\)"):
            load_backbone(str(tmp_path / "old.keras"), "imagenet", "avg", None)

    def test_weights_are_no_model(self, saved, tmp_path: Path) -> None:
        _, model = saved(MODELS["other sides"])
        model.save_weights(tmp_path / "my.weights.h5")
        with pytest.raises(UsageError, match=r"holds weights and no model: give it as backbone\.weights"):
            load_backbone(str(tmp_path / "my.weights.h5"), "imagenet", "avg", None)

    def test_no_hdf5_at_all(self, tmp_path: Path) -> None:
        (tmp_path / "m.h5").write_bytes(b"no")
        with pytest.raises(UsageError, match="cannot be read as HDF5"):
            load_backbone(str(tmp_path / "m.h5"), "imagenet", "avg", None)
        with pytest.raises(UsageError, match=r"no such file: .*other\.h5"):
            load_backbone(str(tmp_path / "other.h5"), "imagenet", "avg", None)
