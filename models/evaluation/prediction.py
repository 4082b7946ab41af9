"""Predict with a network in batches of one size."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

# A multiple of every common number of accelerators.
PREDICTED_TOGETHER = 48


def predict(network: keras.Model, batches: Any, indices: np.ndarray, reduced: bool = False) -> np.ndarray:
    """Return the network output for ``indices``, ``(len(indices), nz, nx, channels)``; compiled once.

    Args:
        batches: Has ``plain(indices)``, which makes the inputs.
        reduced: Predict at reduced rates, with batches that have nested latents.
    """
    options = {"reduced": True} if reduced else {}
    predicted = []
    for start in range(0, len(indices), PREDICTED_TOGETHER):
        some = indices[start : start + PREDICTED_TOGETHER]
        # Constant batch size: another one would compile again and might not split across devices.
        filled = np.resize(some, PREDICTED_TOGETHER)
        predicted.append(
            np.asarray(network.predict_on_batch(batches.plain(filled, **options)[0]))[: len(some)]
        )
    return np.concatenate(predicted)
