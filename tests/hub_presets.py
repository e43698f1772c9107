"""KerasHub presets as a model's own `save_to_preset` writes them: small ones, of random weights."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imgindex.models.frameworks import settled_keras

# (x - mean) / std with the mean and the standard deviation of ImageNet and of CLIP's images, of 0 to 1.
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
SYMMETRIC = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])


@dataclass(frozen=True)
class Kind:
    """A model, and what its preset says of images."""

    build: Callable[[Any], Any]  # of the module keras_hub.models
    side: int
    normalization: tuple[list[float], list[float]] = IMAGENET
    interpolation: str = "bilinear"


def _transformer(side: int, patch: int, **more: Any) -> dict[str, Any]:
    return {
        "patch_size": patch, "num_layers": 1, "hidden_dim": 32, "num_heads": 2, "intermediate_dim": 64,
        "image_shape": (side, side, 3), **more,
    }  # fmt: skip


def _text(encoder: Any) -> Any:
    return encoder(
        vocabulary_size=9, embedding_dim=32, hidden_dim=32, num_layers=1, num_heads=2, intermediate_dim=64,
        max_sequence_length=8,
    )  # fmt: skip


def _vit(models: Any, **more: Any) -> Any:
    return models.ViTBackbone(
        image_shape=(64, 64, 3), patch_size=16, num_layers=1, num_heads=2, hidden_dim=32, mlp_dim=64, **more
    )


KINDS = {
    "ResNet18": Kind(
        lambda models: models.ResNetBackbone([64], [7], [64, 96], [2, 2], [1, 2], "basic_block"), 64
    ),
    "ResNet50": Kind(
        lambda models: models.ResNetBackbone([64], [7], [64, 32], [2, 2], [1, 2], "bottleneck_block"),
        64,
        interpolation="bicubic",
    ),
    "DINOv2": Kind(
        lambda models: models.DINOV2Backbone(
            **_transformer(56, 14, num_register_tokens=2), position_embedding_shape=(70, 70, 3)
        ),
        56,
        interpolation="bicubic",
    ),
    "DINOv3": Kind(lambda models: models.DINOV3Backbone(**_transformer(64, 16, num_register_tokens=2)), 64),
    "SigLIP": Kind(
        lambda models: models.SigLIPBackbone(
            models.SigLIPVisionEncoder(**_transformer(64, 16)), _text(models.SigLIPTextEncoder)
        ),
        64,
        SYMMETRIC,
    ),
    "CLIP": Kind(
        lambda models: models.CLIPBackbone(
            models.CLIPVisionEncoder(**_transformer(64, 16)), _text(models.CLIPTextEncoder), projection_dim=16
        ),
        64,
        CLIP,
        "bicubic",
    ),
    "ViT": Kind(_vit, 64, SYMMETRIC),
    "CLIP's vision encoder": Kind(
        lambda models: models.CLIPVisionEncoder(**_transformer(64, 16)), 64, CLIP, "bicubic"
    ),
    "ViT without class token": Kind(lambda models: _vit(models, use_class_token=False), 64, SYMMETRIC),
    "DeiT": Kind(
        lambda models: models.DeiTBackbone(
            image_shape=(64, 64, 3), patch_size=16, num_layers=1, num_heads=2, hidden_dim=32,
            intermediate_dim=64,
        ),
        64,
    ),
    "DenseNet": Kind(lambda models: models.DenseNetBackbone([2, 2], growth_rate=8), 64),
    "EfficientNet": Kind(
        lambda models: models.EfficientNetBackbone(
            stackwise_width_coefficients=[1, 1], stackwise_depth_coefficients=[1, 1],
            stackwise_kernel_sizes=[3, 3], stackwise_num_repeats=[1, 2], stackwise_input_filters=[32, 16],
            stackwise_output_filters=[16, 24], stackwise_expansion_ratios=[1, 6], stackwise_strides=[1, 2],
            stackwise_squeeze_and_excite_ratios=[0.25, 0.25], stackwise_block_types=["v1", "v1"],
            stackwise_force_input_filters=[0, 0], stackwise_nores_option=[False, False],
        ),
        64,
    ),
    "MobileNet": Kind(
        lambda models: models.MobileNetBackbone(
            stackwise_expansion=[[40, 56], [64, 144]], stackwise_num_blocks=[2, 2],
            stackwise_num_filters=[[16, 16], [24, 24]], stackwise_kernel_size=[[3, 3], [5, 5]],
            stackwise_num_strides=[[2, 1], [2, 1]], stackwise_se_ratio=[[None, None], [0.25, 0.25]],
            stackwise_activation=[["relu", "relu"], ["hard_swish", "hard_swish"]],
            stackwise_padding=[[1, 1], [2, 2]], output_num_filters=32, input_activation="hard_swish",
            output_activation="hard_swish", input_num_filters=16, depthwise_filters=8, depthwise_stride=2,
            depthwise_residual=False, squeeze_and_excite=0.5, last_layer_filter=64,
        ),
        64,
    ),
    "CSPNet": Kind(
        lambda models: models.CSPNetBackbone(
            stem_filters=16, stem_kernel_size=3, stem_strides=1, stackwise_depth=[1, 2],
            stackwise_strides=[1, 2], stackwise_num_filters=[16, 32], block_type="dark_block",
            stage_type="dark",
        ),
        64,
    ),
    "VGG": Kind(lambda models: models.VGGBackbone([1, 1], [8, 8]), 64),
    "Xception": Kind(lambda models: models.XceptionBackbone([[8, 8], [16, 16]], [True, False]), 64),
}  # fmt: skip


def save_preset(folder: Path, kind: Kind, **converter: Any) -> str:
    """Writes a preset; `converter` has other settings of its image converter. Gives the folder's path."""
    with settled_keras() as keras:
        import keras_hub

        keras.utils.set_random_seed(0)
        model = kind.build(keras_hub.models)
        generator = np.random.default_rng(0)
        for weight in model.weights:
            # DINOv2 makes these of others when it loads them.
            if len(weight.shape) > 1 and "interpolated" not in weight.name:
                values = generator.standard_normal(weight.shape) * np.prod(weight.shape[:-1]) ** -0.5
                weight.assign(values.astype(np.float32))
        model.save_to_preset(str(folder))
        mean, std = kind.normalization
        settings = {
            "image_size": (kind.side, kind.side),
            "scale": [1 / 255 / s for s in std],
            "offset": [-m / s for m, s in zip(mean, std, strict=True)],
            "interpolation": kind.interpolation,
            **converter,
        }
        keras_hub.layers.ImageConverter(**settings).save_to_preset(str(folder))
    return str(folder)
