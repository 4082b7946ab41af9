"""Writes tiny-encoder.tflite: int8 (1, 10, 3, 2) -> 8 values, so that device tests need no TensorFlow."""

from pathlib import Path

import keras
import numpy as np

from convert.quantise import quantise

if __name__ == "__main__":
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((10, 3, 2)),
            keras.layers.Conv2D(4, 3, 2, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(8),
        ]
    )
    parts = np.random.default_rng(0).uniform(-1, 1, (64, 10, 3, 2)).astype(np.float32)
    Path(__file__).with_name("tiny-encoder.tflite").write_bytes(quantise(network, parts))
