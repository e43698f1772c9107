"""KerasHub presets as backbones: each gives what KerasHub's own model gives, by both engines."""

import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hub_presets import KINDS, save_preset
from long_runs import some_long
from PIL import Image

from imgindex.errors import MachineError, UsageError
from imgindex.models.backbones import check_backbone, load_backbone
from imgindex.models.batches import embed_all
from imgindex.models.engines.loading import create_engine
from imgindex.models.engines.openvino_conversion import converted_model
from imgindex.models.engines.protocol import EngineChoice
from imgindex.models.frameworks import has_bfloat16, settled_keras
from imgindex.models.preprocess import decode
from imgindex.models.spec import Spec

# How many tokens a model gives before those of the patches.
OTHER_TOKENS = {
    "DINOv2": 3, "DINOv3": 3, "CLIP": 1, "CLIP's vision encoder": 1, "ViT": 1, "ViT without class token": 0,
    "DeiT": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """Gives the folder of a preset, which the first test that asks writes."""
    folder = tmp_path_factory.mktemp("presets")

    def saved(name: str) -> str:
        path = folder / name
        return str(path) if path.exists() else save_preset(path, KINDS[name])

    return saved


@pytest.fixture
def own_preset(preset, tmp_path):
    """A copy of a preset that a test may change."""

    def copied(name: str) -> Path:
        shutil.copytree(preset(name), tmp_path / "preset")
        return tmp_path / "preset"

    return copied


def pictures(count: int = 3) -> list[bytes]:
    """PNGs of several shapes, of coarse and of fine detail."""
    random = np.random.default_rng(3)
    encoded = []
    for number in range(count):
        noise = Image.fromarray(random.integers(0, 256, (9 + number, 13, 3), dtype=np.uint8))
        file = io.BytesIO()
        noise.resize((150 + 20 * number, 110), Image.Resampling.BICUBIC).save(file, "PNG")
        encoded.append(file.getvalue())
    return encoded


def pool(found: np.ndarray, pooling: str, other_tokens: int) -> np.ndarray:
    """The features [n, d] of feature maps [n, h, w, d], of tokens [n, tokens, d] or of features, by NumPy."""
    if found.ndim == 2:
        return found
    if pooling == "cls":
        return found[:, 0]
    patches = found[:, other_tokens:] if found.ndim == 3 else found.reshape(len(found), -1, found.shape[-1])
    match pooling:
        case "avg":
            return patches.mean(axis=1)
        case "max":
            return patches.max(axis=1)
        case _:
            return np.cbrt((np.maximum(patches, 1e-6).astype(np.float64) ** 3).mean(axis=1))


def by_keras_hub(folder: str, name: str, side: int | None = None) -> np.ndarray:
    """What KerasHub's model gives for the pictures, which Pillow resizes and NumPy normalizes."""
    kind = KINDS[name]
    side = side or kind.side
    mean, std = kind.normalization
    resample = Image.Resampling[kind.interpolation.upper()]
    resized = [
        np.asarray(Image.open(io.BytesIO(picture)).resize((side, side), resample)) for picture in pictures()
    ]
    values = ((np.array(resized, np.float32) / 255 - mean) / std).astype(np.float32)
    with settled_keras() as keras:
        import keras_hub

        shape = {} if side == kind.side else {"image_shape": (side, side, 3)}
        model = keras_hub.models.Backbone.from_preset(folder, **shape)
        tower = getattr(model, "vision_encoder", model)
        return np.asarray(tower(keras.tree.map_structure(lambda _: values, tower.input)))


def least_cosine(found: np.ndarray, expected: np.ndarray) -> float:
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return float(((found * expected).sum(axis=1) / lengths).min())


def by_engine(choice: EngineChoice) -> np.ndarray:
    """What an engine gives for the pictures, as a build decodes them."""
    engine = create_engine(choice, 2)
    return embed_all(
        engine, np.array([decode(picture, engine.spec.resizing).pixels for picture in pictures()])
    )


def choice(folder: str, engine: str, **changes) -> EngineChoice:
    return dataclasses.replace(EngineChoice(folder, "imagenet", "avg", None, engine, "float32", 3), **changes)


# How the features of each kind are pooled, so that every pooling is there.
POOLINGS = {
    "ResNet18": "avg", "ResNet50": "gem", "DINOv2": "cls", "DINOv3": "avg", "SigLIP": "avg", "CLIP": "cls",
    "ViT": "max", "CLIP's vision encoder": "avg", "ViT without class token": "gem", "DeiT": "avg",
    "DenseNet": "avg", "EfficientNet": "avg", "MobileNet": "avg", "CSPNet": "avg", "VGG": "avg",
    "Xception": "avg",
}  # fmt: skip


class TestFeatures:
    @pytest.mark.parametrize("name", some_long(KINDS, "ResNet18", "DINOv2", "SigLIP", "CLIP"))
    def test_are_those_of_keras_hub_by_both_engines(self, preset, name):
        folder, pooling = preset(name), POOLINGS[name]
        expected = pool(by_keras_hub(folder, name), pooling, OTHER_TOKENS.get(name, 0))
        assert least_cosine(np.roll(expected, 1, axis=0), expected) < 0.999, "another image's would pass"
        for engine in ("tensorflow", "openvino"):
            found = by_engine(choice(folder, engine, pooling=pooling))
            assert found.dtype == np.float32
            assert least_cosine(found, expected) > 0.9999, engine
            np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())

    def test_of_tokens_are_pooled_over_the_patches_or_are_the_class_token(self, preset):
        """Neither the class token nor the registers count among the patches."""
        folder = preset("DINOv2")
        given = by_keras_hub(folder, "DINOv2")
        for pooling in ("avg", "max", "gem", "cls"):
            backbone = load_backbone(folder, "imagenet", pooling, None)
            pixels = np.array([decode(picture, backbone.resizing).pixels for picture in pictures()])
            expected = pool(given, pooling, OTHER_TOKENS["DINOv2"])
            found = np.asarray(backbone.model(pixels))
            np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())

    @pytest.mark.long
    @pytest.mark.parametrize("name", ["ResNet18", "DINOv2", "DINOv3"])
    def test_of_another_size(self, preset, name):
        """DINOv2 makes its position embeddings fit."""
        folder = preset(name)
        expected = pool(by_keras_hub(folder, name, side=112), "avg", OTHER_TOKENS.get(name, 0))
        for engine in ("tensorflow", "openvino"):
            found = by_engine(choice(folder, engine, image_size=112))
            assert least_cosine(found, expected) > 0.9999, engine

    @pytest.mark.long
    @pytest.mark.parametrize("engine", ["tensorflow", "openvino"])
    @pytest.mark.parametrize("name", ["ResNet18", "ResNet50", "DINOv2", "DINOv3", "SigLIP", "CLIP", "ViT"])
    def test_in_bfloat16_are_near_those_in_float32(self, preset, name, engine):
        folder = preset(name)
        # float32 comes last, for TensorFlow's rewrites stay on for all graphs of the process.
        near, exact = (by_engine(choice(folder, engine, precision=p)) for p in ("bfloat16", "float32"))
        assert least_cosine(near, exact) > 0.999
        if has_bfloat16():
            assert not np.array_equal(near, exact)

    @pytest.mark.long
    def test_of_the_mirror_image_count_as_well(self, preset):
        folder = preset("CLIP")
        backbone = load_backbone(folder, "imagenet", "cls", None, mirror=True)
        pixels = np.array([decode(picture, backbone.resizing).pixels for picture in pictures()])
        plain = load_backbone(folder, "imagenet", "cls", None).model
        expected = (plain.predict(pixels, verbose=0) + plain.predict(pixels[:, :, ::-1], verbose=0)) / 2
        np.testing.assert_allclose(backbone.model.predict(pixels, verbose=0), expected, atol=1e-4)


class TestSpec:
    def spec(self, folder: Path | str, pooling: str = "avg", **options) -> Spec:
        return Spec.of(load_backbone(str(folder), "imagenet", pooling, None, **options))

    def test_says_what_the_preset_says(self, preset):
        spec = self.spec(preset("CLIP"), "cls")
        assert (spec.backbone, spec.image_size) == ("keras_hub.CLIPVisionEncoder", (64, 64))
        assert (spec.pooling, spec.interpolation, spec.resize) == ("cls", "bicubic", "stretch")
        mean, std = KINDS["CLIP"].normalization
        scale, offset = re.fullmatch(
            r"keras\.layers\.Rescaling\(scale=(.*), offset=(.*)\)", spec.preprocessing
        ).groups()
        np.testing.assert_allclose(json.loads(scale), 1 / 255 / np.array(std))
        np.testing.assert_allclose(json.loads(offset), -np.array(mean) / std)

    def test_is_the_same_each_time_and_wherever_the_preset_lies(self, own_preset, preset):
        assert self.spec(own_preset("VGG")) == self.spec(preset("VGG"))

    def test_of_an_image_tower_is_that_of_the_model_that_it_belongs_to(self, preset, tmp_path):
        with settled_keras():
            import keras_hub

            model = keras_hub.models.Backbone.from_preset(preset("CLIP"))
            model.vision_encoder.save_to_preset(str(tmp_path))
        shutil.copy(Path(preset("CLIP")) / "image_converter.json", tmp_path)
        assert self.spec(tmp_path) == self.spec(preset("CLIP"))

    @pytest.mark.parametrize(
        "converter",
        [
            {"offset": [-1.0, -2.0, -2.0]},
            {"scale": 1 / 255},
            {"interpolation": "bicubic"},
            {"image_size": (96, 96)},
        ],
        ids=["mean", "std", "interpolation", "size"],
    )
    def test_differs_with_the_image_converter(self, own_preset, preset, converter):
        folder = own_preset("VGG")
        edit(folder / "image_converter.json", converter)
        assert self.spec(folder).digest != self.spec(preset("VGG")).digest

    def test_differs_with_pooling_and_weights(self, own_preset, preset):
        folder = own_preset("VGG")
        digests = {self.spec(folder).digest, self.spec(folder, "max").digest, self.spec(folder, "gem").digest}
        with settled_keras():
            import keras_hub

            model = keras_hub.models.Backbone.from_preset(str(folder))
            model.weights[0].assign(model.weights[0] * 2)
            model.save_to_preset(str(folder))
        assert len(digests | {self.spec(folder).digest}) == 4

    def test_a_padded_image_is_padded_by_what_the_preset_maps_to_zero(self, preset):
        assert self.spec(preset("VGG"), resize="pad").fill == (124, 116, 104)

    def test_a_converter_without_scale_and_offset(self, own_preset):
        folder = own_preset("VGG")
        edit(folder / "image_converter.json", {"scale": None, "offset": None})
        spec = self.spec(folder, resize="pad")
        assert spec.preprocessing == "keras.layers.Rescaling(scale=1.0, offset=0.0)"
        assert spec.fill == (0, 0, 0)


class TestConverted:
    def test_is_made_anew_where_a_file_of_the_preset_has_changed(self, own_preset):
        folder = own_preset("VGG")
        before = converted_model(str(folder), "imagenet", "avg", None)
        assert converted_model(str(folder), "imagenet", "avg", None) == before
        edit(folder / "image_converter.json", {"interpolation": "bicubic"})
        after = converted_model(str(folder), "imagenet", "avg", None)
        assert (before.spec.interpolation, after.spec.interpolation) == ("bilinear", "bicubic")

    def test_is_the_same_for_a_copy(self, own_preset, preset):
        first = converted_model(preset("VGG"), "imagenet", "avg", None)
        assert converted_model(str(own_preset("VGG")), "imagenet", "avg", None) == first


def edit(path: Path, changes: dict) -> None:
    """Changes settings of what a JSON file of a preset describes."""
    content = json.loads(path.read_text())
    content["config"].update(changes)
    path.write_text(json.dumps(content))


def check(name: Path | str, pooling: str = "avg", weights: str = "imagenet", image_size: int | None = None):
    check_backbone(str(name), weights, pooling, image_size)


class TestRefused:
    @pytest.fixture
    def vit(self, own_preset) -> Path:
        return own_preset("ViT")

    def test_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(UsageError, match=r"no such folder: /.*/gone"):
            check(tmp_path / "gone")

    def test_a_folder_without_a_preset(self, tmp_path):
        with pytest.raises(UsageError, match=r"has no config\.json: expected a folder that .*save_to_preset"):
            check(tmp_path)

    @pytest.mark.parametrize(
        "config",
        [
            {"model_type": "dinov2"},
            {"architecture": "resnet18"},
            {"registered_name": "mine>Backbone", "config": {}},
            {"registered_name": "keras_hub>CLIPBackbone", "config": {}},
            {"registered_name": "keras_hub>ViTBackbone", "config": None},
            {"registered_name": None},
        ],
    )
    def test_a_model_of_other_libraries(self, tmp_path, config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(
            UsageError, match=r"is no KerasHub preset, for its config\.json names no model of"
        ):
            check(tmp_path)

    @pytest.mark.parametrize(
        ("text", "said"), [("{", "is no JSON"), ("[]", "holds no object"), ('"\\ud800', "is no JSON")]
    )
    def test_a_file_that_is_damaged(self, vit, text, said):
        (vit / "image_converter.json").write_text(text)
        with pytest.raises(UsageError, match=rf"image_converter\.json: {said}.*: save the preset again"):
            check(vit)

    def test_a_model_of_texts(self, tmp_path):
        config = {"registered_name": "keras_hub>BertBackbone", "config": {}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(UsageError, match=r"a preset of BertBackbone, .*one of CLIPBackbone, .*ViTBack"):
            check(tmp_path)

    @pytest.mark.parametrize("file", ["model.weights.h5", "image_converter.json"])
    def test_a_preset_of_which_a_file_is_missing(self, vit, file):
        (vit / file).unlink()
        with pytest.raises(UsageError, match=rf"has no {file}: save it"):
            check(vit)

    @pytest.mark.parametrize(
        "handle",
        ["kaggle://keras/dinov2/keras/dinov2_small/1", "hf://facebook/dinov2-small", "gs://bucket/preset"],
    )
    def test_a_handle(self, handle):
        with pytest.raises(UsageError, match=rf"from_preset\('{handle}'\)\.save_to_preset\(FOLDER\)"):
            check(handle)

    def test_the_class_token_of_a_model_that_has_none(self, preset):
        for name in ("ResNet18", "ViT without class token"):
            with pytest.raises(UsageError, match="has no class token: set it to avg, max or gem"):
                check(preset(name), "cls")
        with pytest.raises(UsageError, match="knows no class token of MobileNetV2: set it to avg"):
            check("MobileNetV2", "cls")

    @pytest.mark.parametrize("pooling", ["max", "gem", "cls"])
    def test_another_pooling_than_the_models_own(self, preset, pooling):
        with pytest.raises(UsageError, match=r"pools its tokens by itself, .*: leave backbone\.pooling"):
            check(preset("SigLIP"), pooling)

    @pytest.mark.parametrize("weights", ["bundled", "weights.h5"])
    def test_other_weights(self, preset, weights):
        with pytest.raises(UsageError, match=r"holds its own weights: leave backbone\.weights out"):
            check(preset("ViT"), weights=weights)

    @pytest.mark.parametrize("name", ["ViT", "CLIP", "SigLIP"])
    def test_a_size_that_the_position_embeddings_do_not_have(self, preset, name):
        check(preset(name), image_size=64)
        with pytest.raises(UsageError, match=r"position embeddings .* are those of images of \(64, 64\)"):
            check(preset(name), image_size=96)

    def test_a_converter_of_another_size_than_the_models(self, vit):
        edit(vit / "image_converter.json", {"image_size": [96, 96]})
        with pytest.raises(UsageError, match=r"makes images of \(96, 96\).* and its model takes \(64, 64\)"):
            load_backbone(str(vit), "imagenet", "avg", None)

    def test_an_interpolation_that_the_decoder_does_not_have(self, vit):
        edit(vit / "image_converter.json", {"interpolation": "nearest"})
        with pytest.raises(UsageError, match="interpolation nearest, and imgindex has bilinear and bicubic"):
            load_backbone(str(vit), "imagenet", "avg", None)

    def test_a_model_of_any_size_without_a_size(self, own_preset):
        folder = own_preset("VGG")
        edit(folder / "image_converter.json", {"image_size": None})
        with pytest.raises(UsageError, match=r"takes images of any size: set backbone\.image_size, such as"):
            load_backbone(str(folder), "imagenet", "avg", None)
        assert load_backbone(str(folder), "imagenet", "avg", 40).image_size == (40, 40)

    def test_weights_of_another_model(self, vit, preset):
        shutil.copy(Path(preset("VGG")) / "model.weights.h5", vit)
        with pytest.raises(UsageError, match=r"KerasHub cannot load this preset \(.*\): save it again"):
            load_backbone(str(vit), "imagenet", "avg", None)


@pytest.fixture
def no_keras_hub(monkeypatch):
    """As if KerasHub were not installed."""
    monkeypatch.setitem(sys.modules, "keras_hub", None)


class TestWithoutKerasHub:
    SAID = r"needs KerasHub, which is not installed: pip install 'imgindex\[hub\]'"

    def test_a_preset_is_refused_at_once(self, preset, no_keras_hub):
        with pytest.raises(MachineError, match=self.SAID):
            check(preset("ViT"))

    def test_one_that_cannot_be_loaded_is_said(self, preset, monkeypatch):
        monkeypatch.setattr("imgindex.models.hub.check_keras_hub", lambda name: None)
        monkeypatch.setitem(sys.modules, "keras_hub", None)
        with pytest.raises(MachineError, match=r"cannot be loaded \(ModuleNotFoundError: .*\[hub\]' anew"):
            load_backbone(preset("ViT"), "imagenet", "avg", None)


@pytest.fixture(scope="module")
def wrapper(preset, tmp_path_factory) -> str:
    """A .keras file that holds a model of KerasHub."""
    path = tmp_path_factory.mktemp("wrapper") / "wrapper.keras"
    with settled_keras() as keras:
        import keras_hub

        backbone = keras_hub.models.Backbone.from_preset(preset("VGG"))
        pixels = keras.Input((64, 64, 3))
        keras.Model(pixels, backbone(keras.layers.Rescaling(1 / 255)(pixels))).save(path)
    return str(path)


class TestSavedModels:
    """Keras knows what such a file holds only once KerasHub is imported."""

    def test_give_what_the_model_gives(self, wrapper, preset):
        found = by_engine(choice(wrapper, "openvino"))
        opened = [Image.open(io.BytesIO(picture)) for picture in pictures()]
        pixels = [image.resize((64, 64), Image.Resampling.BILINEAR) for image in opened]
        with settled_keras():
            import keras_hub

            given = keras_hub.models.Backbone.from_preset(preset("VGG"))(np.array(pixels, np.float32) / 255)
        np.testing.assert_allclose(found, pool(np.asarray(given), "avg", 0), rtol=1e-4, atol=1e-4)

    @pytest.mark.long
    def test_load_in_a_process_that_has_not_imported_it(self, wrapper):
        code = (
            "import sys; from imgindex.models.backbones import load_backbone\n"
            f"backbone = load_backbone({wrapper!r}, 'imagenet', 'avg', None)\n"
            "print(backbone.feature_dim, 'keras_hub' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert done.stdout.split() == ["8", "True"]

    @pytest.mark.parametrize("engine", ["tensorflow", "openvino"])
    def test_say_what_to_install(self, wrapper, engine, no_keras_hub):
        with pytest.raises(MachineError, match=rf"wrapper\.keras {TestWithoutKerasHub.SAID}"):
            create_engine(choice(wrapper, engine), 1)

    @pytest.mark.long
    def test_of_keras_alone_do_not_import_it(self, keras_model):
        code = (
            "import sys; from imgindex.models.backbones import load_backbone\n"
            f"load_backbone({keras_model('float32')!r}, 'imagenet', 'avg', None)\n"
            "print('keras_hub' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert done.stdout.strip() == "False"
