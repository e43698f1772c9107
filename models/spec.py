"""The spec: everything that decides a feature vector, and its digest."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from imgindex.models.backbones import Backbone
from imgindex.models.preprocess import PREPROCESSING

_WORDS = {
    "backbone": "backbone",
    "weights_sha256": "weights",
    "image_size": "image size",
    "pooling": "pooling",
    "preprocessing": "preprocessing",
    "decoding": "decoding of images",
    "layers_sha256": "layers",
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
        )

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """What of the spec is another in `other`, of the same keys: in words for a message."""
        own = asdict(self)
        return [words for name, words in _WORDS.items() if own[name] != other.get(name)]

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that name this spec."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]
