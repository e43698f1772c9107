"""How the feature map of a Keras model becomes one feature."""

from typing import Any

# cls is the class token of a vision transformer, which no feature map has: `models.hub` takes it.
POOLINGS = ("avg", "max", "gem", "cls")

# Of GeM, the generalized mean: F. Radenovic, G. Tolias and O. Chum, "Fine-tuning CNN Image Retrieval with No
# Human Annotation" (2018), whose networks learn exponents near 3. The least value keeps roots of 0 finite.
GEM_EXPONENT = 3.0
GEM_LEAST = 1e-6


def pooled(keras: Any, features: Any, pooling: str) -> Any:
    """The Keras tensor ``[n, d]`` of a feature map ``[n, height, width, d]``, by ``avg``, ``max`` or ``gem``.

    ``gem`` is the cube root of the mean cube of each channel, whose negative values count as none.
    """
    if pooling == "gem":
        cubes = keras.ops.power(keras.ops.maximum(features, GEM_LEAST), GEM_EXPONENT)
        return keras.ops.power(keras.ops.mean(cubes, axis=(1, 2)), 1 / GEM_EXPONENT)
    layer = {"avg": "GlobalAveragePooling2D", "max": "GlobalMaxPooling2D"}[pooling]
    return getattr(keras.layers, layer)()(features)
