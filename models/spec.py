"""The spec: everything that decides a feature vector, and its digest."""

import hashlib
import json
from dataclasses import asdict, dataclass

from imgindex.models.backbones import Backbone
from imgindex.models.preprocess import PREPROCESSING


@dataclass(frozen=True)
class Spec:
    """Under equal specs the same bytes give the same feature, but for an engine's rounding."""

    backbone: str  # the architecture, whatever path its weights or its model came from
    weights_sha256: str
    image_size: tuple[int, int]  # height, width
    pooling: str
    preprocessing: str  # the backbone's own, from RGB in 0..255 to what its first layer expects
    decoding: str  # `models.preprocess.decoding` of the config's color profile

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
        )

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that name this spec."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]
