"""The spec: everything that decides a feature vector, and its digest."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from imgindex.models.backbones import Backbone
from imgindex.models.preprocess import PREPROCESSING
from imgindex.models.resizing import Color, Resizing

_WORDS = {
    "backbone": "backbone",
    "weights_sha256": "weights",
    "image_size": "image size",
    "pooling": "pooling",
    "preprocessing": "preprocessing",
    "decoding": "decoding of images",
    "layers_sha256": "layers",
    "resize": "resize",
    "interpolation": "interpolation",
    "fill": "fill color",
    "mirror": "mirror",
}


@dataclass(frozen=True)
class Spec:
    """Under equal specs the same bytes give the same feature, but for an engine's rounding."""

    backbone: str  # the architecture, whatever path its weights or its model came from
    weights_sha256: str
    image_size: tuple[int, int]  # height, width
    pooling: str
    preprocessing: str  # the backbone's own, from RGB in 0..255 to what its first layer expects
    decoding: str  # `models.preprocess.decoding` of the config's color profile
    layers_sha256: str  # of all that the model computes, its dtype policies and constants included
    # With these values the digest is that of before there were others.
    resize: str = "stretch"
    interpolation: str = "bilinear"
    fill: Color | None = None
    mirror: bool = False

    @classmethod
    def of(cls, backbone: Backbone) -> "Spec":
        """The spec that `backbone` carries out."""
        return cls(
            backbone=backbone.architecture,
            weights_sha256=backbone.weights_sha256,
            image_size=backbone.image_size,
            pooling=backbone.pooling,
            preprocessing=backbone.preprocessing,
            decoding=PREPROCESSING,
            layers_sha256=backbone.layers_sha256,
            resize=backbone.resizing.mode,
            interpolation=backbone.resizing.interpolation,
            fill=backbone.resizing.fill,
            mirror=backbone.mirror,
        )

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> "Spec":
        """The spec of which `content` was written down as JSON. Raises TypeError for other keys."""
        read: dict[str, Any] = {
            name: tuple(each) if isinstance(each, list) else each for name, each in content.items()
        }
        return cls(**read)

    @property
    def resizing(self) -> Resizing:
        """What makes an image one of those that the backbone takes."""
        return Resizing(self.image_size, self.resize, self.interpolation, self.fill)

    @property
    def content(self) -> dict[str, Any]:
        """What is written down of it: all but the values that have a default, where they have that."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) != field.default
        }

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """What of the spec is another in `other`, of the same keys: in words for a message."""
        own = asdict(self)
        return [words for name, words in _WORDS.items() if own[name] != other.get(name)]

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that name this spec."""
        canonical = json.dumps(self.content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]
