"""The models of ``keras.applications`` that can be backbones, and what is known of them beforehand."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from imgindex.models.resizing import IMAGENET_MEAN, Color

# The middle of 0 to 255, for models whose preprocessing maps these to -1 to 1.
_GRAY: Color = (128, 128, 128)


@dataclass(frozen=True)
class Architecture:
    """What must be known of a ``keras.applications`` model before Keras is loaded.

    Attributes:
        module: Submodule of ``keras.applications`` that holds its ``preprocess_input``.
        image_size: Default side of the square input, in pixels.
        minimum_size: Smallest side that the application accepts, in pixels.
        fill: The color that its preprocessing maps to about zero.
    """

    module: str
    image_size: int
    minimum_size: int = 32
    fill: Color = IMAGENET_MEAN


APPLICATIONS: Mapping[str, Architecture] = MappingProxyType(
    {
        "ConvNeXtTiny": Architecture("convnext", 224),
        "ConvNeXtSmall": Architecture("convnext", 224),
        "ConvNeXtBase": Architecture("convnext", 224),
        "ConvNeXtLarge": Architecture("convnext", 224),
        "ConvNeXtXLarge": Architecture("convnext", 224),
        "DenseNet121": Architecture("densenet", 224),
        "DenseNet169": Architecture("densenet", 224),
        "DenseNet201": Architecture("densenet", 224),
        "EfficientNetB0": Architecture("efficientnet", 224),
        "EfficientNetB1": Architecture("efficientnet", 240),
        "EfficientNetB2": Architecture("efficientnet", 260),
        "EfficientNetB3": Architecture("efficientnet", 300),
        "EfficientNetB4": Architecture("efficientnet", 380),
        "EfficientNetB5": Architecture("efficientnet", 456),
        "EfficientNetB6": Architecture("efficientnet", 528),
        "EfficientNetB7": Architecture("efficientnet", 600),
        "EfficientNetV2B0": Architecture("efficientnet_v2", 224),
        "EfficientNetV2B1": Architecture("efficientnet_v2", 240),
        "EfficientNetV2B2": Architecture("efficientnet_v2", 260),
        "EfficientNetV2B3": Architecture("efficientnet_v2", 300),
        "EfficientNetV2S": Architecture("efficientnet_v2", 384, fill=_GRAY),
        "EfficientNetV2M": Architecture("efficientnet_v2", 480, fill=_GRAY),
        "EfficientNetV2L": Architecture("efficientnet_v2", 480, fill=_GRAY),
        "InceptionResNetV2": Architecture("inception_resnet_v2", 299, 75, fill=_GRAY),
        "InceptionV3": Architecture("inception_v3", 299, 75, fill=_GRAY),
        "MobileNet": Architecture("mobilenet", 224, fill=_GRAY),
        "MobileNetV2": Architecture("mobilenet_v2", 224, fill=_GRAY),
        "MobileNetV3Large": Architecture("mobilenet_v3", 224, fill=_GRAY),
        "MobileNetV3Small": Architecture("mobilenet_v3", 224, fill=_GRAY),
        "NASNetLarge": Architecture("nasnet", 331, fill=_GRAY),
        "NASNetMobile": Architecture("nasnet", 224, fill=_GRAY),
        "ResNet50": Architecture("resnet50", 224),
        "ResNet101": Architecture("resnet", 224),
        "ResNet152": Architecture("resnet", 224),
        "ResNet50V2": Architecture("resnet_v2", 224, fill=_GRAY),
        "ResNet101V2": Architecture("resnet_v2", 224, fill=_GRAY),
        "ResNet152V2": Architecture("resnet_v2", 224, fill=_GRAY),
        "VGG16": Architecture("vgg16", 224),
        "VGG19": Architecture("vgg19", 224),
        "Xception": Architecture("xception", 299, 71, fill=_GRAY),
    }
)
