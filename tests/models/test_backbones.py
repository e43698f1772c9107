"""Backbones: names, weights, preprocessing, saved models, and the messages for what is refused."""

import hashlib
import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from long_runs import some_long

from imgindex.errors import UsageError, WeightsUnavailableError
from imgindex.models import backbones
from imgindex.models.applications import APPLICATIONS, BUNDLED_WEIGHTS
from imgindex.models.backbones import Backbone, check_backbone, load_backbone
from imgindex.models.digests import weights_digest
from imgindex.models.spec import Spec

SHARED = Path(os.environ.get("IMGINDEX_SHARED", Path(__file__).parents[3] / "shared"))

# The smallest member of the families and a small input that it takes. VGG19 and InceptionResNetV2
# are left out for time: VGG16 and InceptionV3 take the same path.
FAMILIES = {
    "ConvNeXtTiny": 32,
    "DenseNet121": 32,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "InceptionV3": 75,
    "MobileNet": 32,
    "MobileNetV2": 64,
    "MobileNetV3Small": 32,
    "NASNetMobile": 32,
    "ResNet50": 32,
    "ResNet50V2": 32,
    "VGG16": 32,
    "Xception": 71,
}


@pytest.fixture(scope="module")
def keras():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import keras

    return keras


@pytest.fixture(scope="module")
def mobilenet() -> Backbone:
    return load_backbone("MobileNetV2", "none", "avg", 64)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
        check=False,
    )


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def core_of(model):
    """The application inside a backbone's model."""
    return next(layer for layer in model.layers if hasattr(layer, "layers"))


class TestModule:
    def test_import_loads_no_framework(self):
        code = (
            "import sys, imgindex.models.backbones as backbones\n"
            "backbones.check_backbone('ResNet50', 'imagenet', 'avg', None)\n"
            "print([m for m in ('keras', 'tensorflow', 'apache_beam') if m in sys.modules])"
        )
        result = run_python(code)
        assert (result.stdout, result.stderr) == ("[]\n", "")

    @pytest.mark.long
    def test_names_are_those_of_keras(self, keras):
        builders = {
            name
            for name, value in vars(keras.applications).items()
            if inspect.isfunction(value) and "include_top" in inspect.signature(value).parameters
        }
        assert set(APPLICATIONS) == builders

    @pytest.mark.long
    def test_modules_hold_the_model_and_its_preprocessing(self, keras):
        for name, architecture in APPLICATIONS.items():
            module = getattr(keras.applications, architecture.module)
            assert callable(module.preprocess_input)
            # The two MobileNetV3 are exported from keras.applications alone.
            if architecture.module != "mobilenet_v3":
                assert getattr(module, name) is getattr(keras.applications, name)


class TestApplications:
    def test_families_are_covered(self):
        families = {APPLICATIONS[name].module for name in FAMILIES}
        # ResNet101 and ResNet152 lie in "resnet", ResNet50 in its alias "resnet50".
        left_out = {"resnet", "vgg19", "inception_resnet_v2"}
        assert families == {a.module for a in APPLICATIONS.values()} - left_out

    @pytest.mark.parametrize("name", some_long(FAMILIES, "MobileNetV2", "VGG16"))
    def test_features_are_those_of_keras_itself(self, keras, name):
        """avg against Keras's own application on preprocessed pixels, max against its maps."""
        size = FAMILIES[name]
        backbone = load_backbone(name, "none", "avg", size)
        images = pixels(2, size, size, 3)

        module = getattr(keras.applications, APPLICATIONS[name].module)
        preprocessed = module.preprocess_input(images.astype(np.float32))
        expected = np.asarray(core_of(backbone.model)(preprocessed, training=False))
        features = np.asarray(backbone.model(images))

        assert features.dtype == np.float32
        assert features.shape == (2, backbone.feature_dim)
        assert np.ptp(features, axis=0).max() > 0
        scale = np.abs(expected).max()
        np.testing.assert_allclose(features / scale, expected / scale, atol=1e-4)
        assert backbone.image_size == (size, size)
        assert backbone.preprocessing == (f"keras.applications.{APPLICATIONS[name].module}.preprocess_input")

    def test_preprocessing_by_hand(self):
        """VGG16: RGB to BGR, then the ImageNet means taken off."""
        backbone = load_backbone("VGG16", "none", "avg", 32)
        images = pixels(1, 32, 32, 3)
        by_hand = images[..., ::-1].astype(np.float32) - np.float32([103.939, 116.779, 123.68])
        expected = np.asarray(core_of(backbone.model)(by_hand, training=False))
        np.testing.assert_allclose(np.asarray(backbone.model(images)), expected, rtol=1e-3)

    @pytest.mark.parametrize("name", some_long(["MobileNetV3Small", "VGG16", "ConvNeXtTiny"], "VGG16"))
    def test_poolings_pool_the_feature_map(self, keras, name):
        average, largest = (load_backbone(name, "none", p, 64) for p in ("avg", "max"))
        # ConvNeXt has variables without a name, which Keras numbers through the life of a process.
        assert average.weights_sha256 == largest.weights_sha256
        assert (average.pooling, largest.pooling) == ("avg", "max")
        images = pixels(2, 64, 64, 3)
        low, high = np.asarray(average.model(images)), np.asarray(largest.model(images))
        assert low.shape == high.shape
        assert not np.allclose(low, high)
        if name == "VGG16":
            core = core_of(average.model)
            maps = keras.Model(core.input, core.layers[-2].output)(
                keras.applications.vgg16.preprocess_input(images.astype(np.float32))
            )
            np.testing.assert_allclose(low, np.mean(maps, axis=(1, 2)), rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(high, np.max(maps, axis=(1, 2)), rtol=1e-3, atol=1e-5)

    def test_null_size_is_the_default(self):
        assert load_backbone("MobileNet", "none", "avg", None).image_size == (224, 224)

    def test_default_sizes_are_those_of_keras(self, keras, monkeypatch):
        """Where an application passes its default through obtain_input_shape, that is the truth."""
        from keras.src.applications import imagenet_utils

        class SeenError(Exception):
            pass

        def record(input_shape, default_size, min_size, **_):
            raise SeenError(default_size, min_size)

        monkeypatch.setattr(imagenet_utils, "obtain_input_shape", record)
        seen = {}
        for name in set(APPLICATIONS) - {"MobileNetV3Large", "MobileNetV3Small"}:
            with pytest.raises(SeenError) as caught:
                getattr(keras.applications, name)(weights=None)
            seen[name] = caught.value.args
        # Keras documents (224, 224, 3) for the two that take any size.
        seen |= dict.fromkeys(["MobileNetV3Large", "MobileNetV3Small"], (224, 32))
        assert seen == {name: (a.image_size, a.minimum_size) for name, a in APPLICATIONS.items()}


class TestWeights:
    @pytest.mark.long
    def test_none_is_the_same_in_another_process(self, mobilenet):
        code = (
            "from imgindex.models.backbones import load_backbone\n"
            "print(load_backbone('MobileNetV2', 'none', 'max', None).weights_sha256)"
        )
        result = run_python(code)
        assert result.stdout == f"{mobilenet.weights_sha256}\n", result.stderr

    def test_none_depends_on_the_seed(self, mobilenet):
        other = load_backbone("MobileNetV2", "none", "avg", 64, seed=1)
        assert other.weights_sha256 != mobilenet.weights_sha256

    @pytest.mark.parametrize("file", ["mine.weights.h5", "mine.h5"])
    def test_path(self, keras, mobilenet, tmp_path, file):
        path = tmp_path / file
        core = core_of(mobilenet.model)
        # A whole model in HDF5 holds its weights in the older layout that Keras's own files have.
        (core.save_weights if ".weights." in file else core.save)(path)
        loaded = load_backbone("MobileNetV2", str(path), "avg", 64, seed=9)
        assert loaded.weights_sha256 == mobilenet.weights_sha256
        images = pixels(2, 64, 64, 3)
        assert np.array_equal(loaded.model(images), mobilenet.model(images))

    @pytest.mark.parametrize("name", some_long(FAMILIES))
    def test_a_path_gives_what_imagenet_gives_of_the_same_file(self, keras, monkeypatch, tmp_path, name):
        """The file lies where Keras would download it to."""
        file, size = tmp_path / "mine.h5", FAMILIES[name]
        getattr(keras.applications, name)(include_top=False, weights=None, input_shape=(size, size, 3)).save(
            file
        )

        def download(_url, target, *_):
            shutil.copy(file, target)

        (tmp_path / "keras").mkdir()
        monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path / "keras"))
        monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", download)
        monkeypatch.setattr("keras.src.utils.file_utils.validate_file", lambda *_, **__: True)
        imagenet = load_backbone(name, "imagenet", "avg", size)
        by_path = load_backbone(name, str(file), "avg", size)
        assert list((tmp_path / "keras/models").iterdir()), "nothing was downloaded"
        assert Spec.of(by_path) == Spec.of(imagenet)
        images = pixels(2, size, size, 3)
        assert np.array_equal(by_path.model(images), imagenet.model(images))

    def test_path_that_does_not_fit(self, mobilenet, tmp_path):
        path = tmp_path / "mine.weights.h5"
        core_of(mobilenet.model).save_weights(path)
        with pytest.raises(UsageError) as caught:
            load_backbone("ResNet50", str(path), "avg", 32)
        message = str(caught.value)
        assert message.startswith(f"{path}: these weights do not fit ResNet50 (")
        assert message.endswith("saved from keras.applications.ResNet50(include_top=False)")
        assert len(message.splitlines()) == 1

    @pytest.mark.parametrize("file", ["broken.h5", "broken.weights.h5"])
    def test_path_that_is_no_weights_file(self, tmp_path, file):
        path = tmp_path / file
        path.write_bytes(b"not HDF5")
        with pytest.raises(UsageError, match="these weights do not fit MobileNetV2"):
            load_backbone("MobileNetV2", str(path), "avg", 64)

    @pytest.mark.long
    def test_imagenet_that_cannot_be_downloaded(self, tmp_path):
        code = (
            "from imgindex.errors import WeightsUnavailableError\n"
            "from imgindex.models.backbones import load_backbone\n"
            "try: load_backbone('ResNet50', 'imagenet', 'avg', 64)\n"
            "except WeightsUnavailableError as error: print(error)"
        )
        nowhere = "http://127.0.0.1:9"
        result = run_python(
            code, KERAS_HOME=str(tmp_path), https_proxy=nowhere, HTTPS_PROXY=nowhere, no_proxy=""
        )
        assert result.stdout.startswith("ResNet50: Keras could not download its ImageNet weights ("), (
            result.stderr
        )
        file = "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
        advice = f"put {file} into {tmp_path / 'models'}, or give --set backbone.weights=PATH, none"
        assert advice in result.stdout
        assert len(result.stdout.splitlines()) == 1

    def test_imagenet_download_is_recognized_in_process(self, keras, monkeypatch):
        def refuse(*_):
            raise TimeoutError("timed out")

        monkeypatch.setattr("keras.src.utils.file_utils.os.path.exists", lambda _: False)
        monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", refuse)
        with pytest.raises(WeightsUnavailableError, match=r"timed out.*mobilenet_v2_.*_96_no_top"):
            load_backbone("MobileNetV2", "imagenet", "avg", 96)

    def test_keras_prints_nothing(self, capfd, mobilenet):
        load_backbone("MobileNetV3Small", "none", "avg", 64)
        load_backbone("MobileNetV2", "bundled", "avg", 100)
        assert capfd.readouterr() == ("", "")


class TestBundled:
    def test_checksum(self):
        for line in (BUNDLED_WEIGHTS.parent / "SHA256SUMS").read_text().splitlines():
            digest, file = line.split()
            content = (BUNDLED_WEIGHTS.parent / file).read_bytes()
            assert hashlib.sha256(content).hexdigest() == digest
            assert digest in (BUNDLED_WEIGHTS.parent / "README.md").read_text()

    def test_is_what_keras_makes_of_the_file(self, keras):
        backbone = load_backbone("MobileNetV2", "bundled", "avg", 96)
        assert backbone.feature_dim == 1280
        assert {weight.dtype for weight in backbone.model.weights} == {"float32"}
        reference = keras.applications.MobileNetV2(
            input_shape=(96, 96, 3), include_top=False, pooling="avg", weights=str(BUNDLED_WEIGHTS)
        )
        assert weights_digest(reference) == backbone.weights_sha256
        images = pixels(2, 96, 96, 3)
        preprocessed = keras.applications.mobilenet_v2.preprocess_input(images.astype(np.float32))
        expected = np.asarray(reference(preprocessed, training=False))
        np.testing.assert_allclose(np.asarray(backbone.model(images)), expected, atol=1e-4)

    def test_only_for_its_architecture(self):
        with pytest.raises(UsageError, match="bundles weights of MobileNetV2 only"):
            check_backbone("ResNet50", "bundled", "avg", None)

    def test_features_are_those_of_the_original(self):
        from PIL import Image

        original = SHARED / "weights" / "MobileNetV2_imagenet_notop.weights.h5"
        photos = sorted(SHARED.glob("data/caltech20/*/*.jpg"))[::40]
        if not original.is_file() or not photos:
            pytest.skip("needs the float32 weights and the photos in IMGINDEX_SHARED")
        images = np.stack(
            [np.asarray(Image.open(photo).convert("RGB").resize((224, 224))) for photo in photos]
        )
        features = []
        for weights in ("bundled", str(original)):
            model = load_backbone("MobileNetV2", weights, "avg", None).model
            raw = np.asarray(model(images))
            features.append(raw / np.linalg.norm(raw, axis=1, keepdims=True))
        assert np.sum(features[0] * features[1], axis=1).min() > 0.9999


class TestSavedModel:
    def save(self, keras, path: Path, shape, *layers, **options) -> str:
        keras.Sequential([keras.Input(shape, **options), *layers]).save(path)
        return str(path)

    @pytest.mark.parametrize("pooling", ["avg", "max"])
    def test_feature_map_is_pooled(self, keras, tmp_path, pooling):
        name = self.save(keras, tmp_path / "m.keras", (6, 32, 3), keras.layers.Rescaling(0.5))
        backbone = load_backbone(name, "imagenet", pooling, None)
        images = pixels(3, 6, 32, 3)
        pool = {"avg": np.mean, "max": np.max}[pooling]
        np.testing.assert_allclose(
            np.asarray(backbone.model(images)), pool(images * 0.5, axis=(1, 2)), rtol=1e-5
        )
        assert (backbone.image_size, backbone.feature_dim) == ((6, 32), 3)
        assert backbone.preprocessing == "in the model"
        assert backbone.architecture.startswith("keras-model-")

    def test_pooled_output_stays(self, keras, tmp_path):
        layers = [keras.layers.Flatten(), keras.layers.Dense(5)]
        name = self.save(keras, tmp_path / "m.keras", (32, 32, 3), *layers)
        backbone = load_backbone(name, "none", "max", None)
        images = pixels(2, 32, 32, 3)
        kernel, bias = (np.asarray(weight) for weight in backbone.model.weights)
        expected = images.reshape(2, -1).astype(np.float32) @ kernel + bias
        np.testing.assert_allclose(np.asarray(backbone.model(images)), expected, rtol=1e-3)
        assert backbone.weights_sha256 == load_backbone(name, "none", "avg", 32).weights_sha256

    @pytest.mark.parametrize("structure", [lambda y: [y], lambda y: {"feature": y}, lambda y: ({"y": [y]},)])
    def test_one_output_in_a_list_or_a_dict(self, keras, tmp_path, structure):
        pixel = keras.Input((32, 32, 3))
        feature = keras.layers.Conv2D(4, 3)(pixel)
        keras.Model(pixel, structure(feature)).save(tmp_path / "m.keras")
        plain = keras.Model(pixel, feature)
        images = pixels(2, 32, 32, 3)
        expected = np.mean(plain(images), axis=(1, 2))
        backbone = load_backbone(str(tmp_path / "m.keras"), "none", "avg", None)
        np.testing.assert_allclose(np.asarray(backbone.model(images)), expected, rtol=1e-3)

    def test_its_own_dtype_policy_decides(self, keras, tmp_path):
        """Of two models that are alike but for that, and whose weights are."""
        specs = set()
        for policy in ("float32", "mixed_bfloat16"):
            layer = keras.layers.Conv2D(4, 3, kernel_initializer="ones", dtype=policy)
            name = self.save(keras, tmp_path / f"{policy}.keras", (32, 32, 3), layer)
            specs.add(Spec.of(load_backbone(name, "none", "avg", None)))
        assert len({spec.weights_sha256 for spec in specs}) == 1
        assert len({spec.digest for spec in specs}) == 2

    def test_any_size(self, keras, tmp_path):
        name = self.save(keras, tmp_path / "m.keras", (None, None, 3), keras.layers.Conv2D(4, 3))
        with pytest.raises(UsageError, match=r"takes images of any size: set backbone.image_size"):
            load_backbone(name, "imagenet", "avg", None)
        backbone = load_backbone(name, "imagenet", "avg", 48)
        assert backbone.model(pixels(1, 48, 48, 3)).shape == (1, 4)

    def test_size_that_does_not_work_out(self, keras, tmp_path):
        name = self.save(keras, tmp_path / "m.keras", (None, None, 3), keras.layers.Conv2D(4, 40))
        with pytest.raises(UsageError, match=r"does not take images of \(32, 32\)"):
            load_backbone(name, "imagenet", "avg", 32)

    def test_other_size_than_its_own(self, keras, tmp_path):
        name = self.save(keras, tmp_path / "m.keras", (32, 32, 3), keras.layers.Conv2D(4, 3))
        with pytest.raises(UsageError, match=r"takes images of \(32, 32\) .* is \(48, 48\)"):
            load_backbone(name, "imagenet", "avg", 48)

    def test_integer_input(self, keras, tmp_path):
        layer = keras.layers.Rescaling(2.0)
        name = self.save(keras, tmp_path / "m.keras", (32, 32, 3), layer, dtype="uint8")
        images = pixels(1, 32, 32, 3)
        features = np.asarray(load_backbone(name, "none", "max", None).model(images))
        assert np.array_equal(features, images.max(axis=(1, 2)) * np.float32(2))

    def test_lambda_is_refused(self, keras, tmp_path):
        layer = keras.layers.Lambda(lambda x: x * 2)
        name = self.save(keras, tmp_path / "m.keras", (32, 32, 3), layer)
        with pytest.raises(UsageError, match=r"has a Lambda layer, .* replace it by a built-in"):
            load_backbone(name, "none", "avg", None)

    def test_foreign_class_is_refused(self, keras, tmp_path):
        class Mine(keras.layers.Layer):
            def call(self, x):
                return x

        name = self.save(keras, tmp_path / "m.keras", (32, 32, 3), Mine())
        with pytest.raises(UsageError, match=r"Keras cannot read this model .* built-in layers"):
            load_backbone(name, "none", "avg", None)

    def test_unreadable_file(self, tmp_path):
        path = tmp_path / "m.keras"
        path.write_bytes(b"not a zip")
        with pytest.raises(UsageError, match="Keras cannot read this model") as caught:
            load_backbone(str(path), "none", "avg", None)
        assert len(str(caught.value).splitlines()) == 1

    @pytest.mark.parametrize("shape", [(32, 32, 2), (32, 3)])
    def test_wrong_shapes(self, keras, tmp_path, shape):
        name = self.save(keras, tmp_path / "m.keras", shape, keras.layers.Rescaling(1.0))
        with pytest.raises(UsageError, match=r"takes \[n, 32, .*imgindex gives a model images \[n, height"):
            load_backbone(name, "none", "avg", None)

    def test_own_weights_only(self, tmp_path):
        path = tmp_path / "m.keras"
        path.touch()
        check_backbone(str(path), "imagenet", "avg", None)
        for weights in ("bundled", "other.h5"):
            with pytest.raises(UsageError, match="holds its own weights"):
                check_backbone(str(path), weights, "avg", None)

    def test_missing_file(self):
        with pytest.raises(UsageError, match=r"backbone.name: no such file: nowhere.keras"):
            check_backbone("nowhere.keras", "imagenet", "avg", None)


class TestCheck:
    @pytest.mark.parametrize("image_size", [None, 32, 2048])
    def test_accepts(self, image_size):
        check_backbone("ResNet50", "imagenet", "max", image_size)

    @pytest.mark.parametrize("image_size", [31, 2049, 0, True, 224.0, "224", (224, 320), {}])
    def test_image_size(self, image_size):
        with pytest.raises(UsageError, match="expected a side in pixels"):
            check_backbone("ResNet50", "imagenet", "avg", image_size)

    @pytest.mark.parametrize(("name", "minimum"), [("InceptionV3", 75), ("Xception", 71)])
    def test_minimum_size(self, name, minimum):
        check_backbone(name, "none", "avg", minimum)
        with pytest.raises(UsageError, match=f"{name} takes no side below {minimum} pixels"):
            check_backbone(name, "none", "avg", minimum - 1)

    @pytest.mark.parametrize(
        ("given", "nearest"),
        [("resnet50", "ResNet50"), ("Resnet-152", "ResNet152"), ("InceptonV3", "InceptionV3")],
    )
    def test_unknown_name(self, given, nearest):
        with pytest.raises(UsageError, match=rf"{given}' is unknown \(did you mean .*{nearest}"):
            check_backbone(given, "imagenet", "avg", None)

    @pytest.mark.parametrize(
        ("weights", "message"),
        [
            ("imagnet", r"'imagnet' \(did you mean imagenet\?\)"),
            ("", "is ''.*expected imagenet, bundled, none or the path"),
            ("nowhere.weights.h5", "no such file: nowhere.weights.h5"),
            ("model.keras", "expected imagenet, bundled, none or the path of a .h5"),
        ],
    )
    def test_weights(self, weights, message):
        with pytest.raises(UsageError, match=message):
            check_backbone("ResNet50", weights, "avg", None)

    def test_pooling(self):
        with pytest.raises(UsageError, match=r"backbone.pooling is 'mean': expected .* avg, max"):
            check_backbone("ResNet50", "imagenet", "mean", None)

    def test_load_checks_first(self, monkeypatch):
        monkeypatch.setattr(backbones, "settled_keras", lambda: pytest.fail("Keras was loaded"))
        with pytest.raises(UsageError, match="is unknown"):
            load_backbone("NoSuchNet", "none", "avg", None)
