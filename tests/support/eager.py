"""Short trainings without a trace of their step."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def eagerly() -> Iterator[None]:
    """Run TensorFlow's functions eagerly, in a block or as a decorator.

    A trace takes as long as ten eager steps of EPIC, so this is for trainings of fewer. A layer that cannot be traced
    fails without it too, when its network is built.
    """
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)
