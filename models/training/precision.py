"""Mixed precision: on a GPU that has bfloat16, layers compute in it and keep their weights in float32."""

from collections.abc import Iterator
from contextlib import contextmanager

from imgindex.models.training.networks import Network, leaves

# From which compute capability on NVIDIA's GPUs multiply matrices of bfloat16: Ampere's.
_BFLOAT16_SINCE = (8, 0)


def uses_bfloat16() -> bool:
    """Whether all GPUs that TensorFlow sees have bfloat16; False where there is none."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    found = [tf.config.experimental.get_device_details(gpu).get("compute_capability") for gpu in gpus]
    return bool(found) and all(each is not None and each >= _BFLOAT16_SINCE for each in found)


@contextmanager
def mixed_precision(network: Network, *, wanted: bool) -> Iterator[None]:
    """Has the backbone compute in bfloat16 until the block ends, where that is `wanted`.

    Its weights are float32 all along. So is what the classifier computes.
    """
    before = [(layer, layer.dtype_policy) for layer in leaves(network.backbone)] if wanted else []
    for layer, policy in before:
        if policy.name == "float32":
            layer.dtype_policy = "mixed_bfloat16"
    try:
        yield
    finally:
        for layer, policy in before:
            layer.dtype_policy = policy
