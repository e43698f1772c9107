"""Random changes of training images, by Keras layers in front of the backbone that is saved."""

from typing import Any

_FILL = "reflect"


def augmenting(keras: Any, augment: str, seed: int) -> list[Any]:
    """The layers that change raw pixels in 0..255, float32 ``[n, height, width, 3]``, in training alone.

    Args:
        keras: The module ``keras``.
        augment: ``none``: no layer. ``light``: mirror images, shifts of a twentieth, sizes within a tenth.
            ``strong``: besides, shifts of a tenth, sizes within a fifth, turns of 18 degrees, brightness,
            contrast and color.
        seed: Draws the changes.
    """
    layers = keras.layers
    if augment == "none":
        return []
    strong = augment == "strong"
    shift, zoom = (0.1, 0.2) if strong else (0.05, 0.1)
    made = [
        layers.RandomFlip("horizontal", seed=seed, dtype="float32"),
        layers.RandomTranslation(shift, shift, _FILL, seed=seed + 1, dtype="float32"),
        layers.RandomZoom((-zoom, zoom), None, _FILL, seed=seed + 2, dtype="float32"),
    ]
    if strong:
        made += [
            layers.RandomRotation(0.05, _FILL, seed=seed + 3, dtype="float32"),
            layers.RandomBrightness(0.2, (0, 255), seed=seed + 4, dtype="float32"),
            layers.RandomContrast(0.3, (0, 255), seed=seed + 5, dtype="float32"),
            layers.RandomSaturation((0.35, 0.65), (0, 255), seed=seed + 6, dtype="float32"),
        ]
    return made
