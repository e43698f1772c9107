"""The threads that TensorFlow computes with: with one, a training can be repeated bit by bit."""

from imgindex.errors import UsageError
from imgindex.models.frameworks import settled_keras


def use_threads(threads: int | None, cores: int) -> None:
    """Has TensorFlow compute with `threads`, by default with as many as there are `cores`.

    Raises:
        UsageError: It has started in this process with another number.
    """
    with settled_keras():
        import tensorflow as tf

        threading = tf.config.threading
        try:
            threading.set_intra_op_parallelism_threads(threads or cores)
            threading.set_inter_op_parallelism_threads(threads or cores)
        except RuntimeError as error:
            if threads not in (None, threading.get_intra_op_parallelism_threads()):
                raise UsageError(
                    f"--threads is {threads}, but TensorFlow has started with others in this process: train "
                    "in a process of its own"
                ) from error
        if threads == 1:
            tf.config.experimental.enable_op_determinism()
