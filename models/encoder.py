"""The device encoder: one network, the same weights on every device.

Only operators that TFLite-Micro, Arm Ethos-U and the Edge TPU all have in int8 (DESIGN section 4):
convolution, fully connected, reshape, ReLU; batch normalisation folds into the convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass

import keras
from keras import layers


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of the input part and size of the network.

    ``blocks`` lists convolutions as (filters, kernel time, kernel receivers, stride time, stride
    receivers); ``bottleneck`` channels remain before the latent is formed.
    """

    n_time: int
    n_receivers: int
    n_sources: int
    latent: int = 128
    blocks: tuple[tuple[int, int, int, int, int], ...] = (
        (24, 7, 3, 2, 1),
        (40, 5, 3, 2, 1),
        (64, 3, 3, 2, 2),
        (64, 3, 3, 1, 1),
        (80, 3, 3, 2, 2),
    )
    bottleneck: int = 24


def build_encoder(config: EncoderConfig) -> keras.Model:
    """Keras model: ``(batch, n_time, n_receivers, n_sources)`` companded -> ``(batch, latent)``.

    The latent is linear; the fusion decoder was trained on whatever range it takes, and conversion
    finds its int8 scale from the representative set.
    """
    part = keras.Input((config.n_time, config.n_receivers, config.n_sources), name="part")
    x = part
    for i, (filters, kernel_t, kernel_r, stride_t, stride_r) in enumerate(config.blocks):
        x = layers.Conv2D(
            filters,
            (kernel_t, kernel_r),
            (stride_t, stride_r),
            padding="same",
            use_bias=False,
            name=f"conv{i}",
        )(x)
        x = layers.BatchNormalization(momentum=0.98, name=f"norm{i}")(x)
        x = layers.ReLU(name=f"relu{i}")(x)
    x = layers.Conv2D(config.bottleneck, 1, activation="relu", name="bottleneck")(x)
    x = layers.Flatten(name="flatten")(x)
    latent = layers.Dense(config.latent, name="latent")(x)
    return keras.Model(part, latent, name="device_encoder")
