"""The device encoder: one network, the same weights on every device, in three sizes.

Only operators that TFLite-Micro, Arm Ethos-U and the Edge TPU all have in int8:
convolution, depthwise convolution, addition, fully connected, reshape, ReLU; batch normalisation folds into
the convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass

import keras
from keras import layers

from physics.acquisition import Acquisition

# Depthwise kernel of a residual block, time x receivers: few weights, wide in time.
RESIDUAL_KERNEL = (5, 3)


@dataclass(frozen=True)
class Stage:
    """A convolution and the residual blocks after it; ``kernel`` and ``stride`` are (time, receivers)."""

    filters: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    residuals: int = 0


@dataclass(frozen=True)
class EncoderConfig:
    """Input shape and network size; ``bottleneck`` is the number of channels before the latent."""

    n_time: int
    n_receivers: int
    n_sources: int
    latent: int
    stages: tuple[Stage, ...]
    bottleneck: int

    @classmethod
    def from_dict(cls, values: dict) -> EncoderConfig:
        stages = tuple(
            Stage(**{**stage, "kernel": tuple(stage["kernel"]), "stride": tuple(stage["stride"])})
            for stage in values["stages"]
        )
        return cls(**{**values, "stages": stages})


# Latent size, channels before it, stages. Residual blocks are placed where feature maps are large and kernels small,
# because a microcontroller's arena has more headroom than its flash (docs/results/encoders.md).
PRESETS: dict[str, tuple[int, int, tuple[Stage, ...]]] = {
    "micro": (
        64,
        16,
        (
            Stage(24, (7, 3), (2, 1)),
            Stage(32, (5, 3), (2, 1), residuals=1),
            Stage(48, (3, 3), (2, 2), residuals=1),
            Stage(64, (3, 3), (2, 2)),
        ),
    ),
    "small": (
        128,
        24,
        (
            Stage(24, (7, 3), (2, 1)),
            Stage(40, (5, 3), (2, 1), residuals=1),
            Stage(64, (3, 3), (2, 2), residuals=1),
            Stage(64, (3, 3), (1, 1)),
            Stage(80, (3, 3), (2, 2), residuals=1),
        ),
    ),
    "base": (
        256,
        32,
        (
            Stage(32, (7, 3), (2, 1)),
            Stage(56, (5, 3), (2, 1), residuals=1),
            Stage(96, (3, 3), (2, 2), residuals=1),
            Stage(96, (3, 3), (1, 1)),
            Stage(128, (3, 3), (2, 2), residuals=1),
        ),
    ),
}


def encoder_preset(name: str, acquisition: Acquisition, decimation: int) -> EncoderConfig:
    """Return the encoder preset ``name`` (a key of ``PRESETS``) for a survey with this decimation."""
    latent, bottleneck, stages = PRESETS[name]
    return EncoderConfig(
        n_time=acquisition.n_time // decimation,
        n_receivers=acquisition.max_device_receivers,
        n_sources=acquisition.n_sources,
        latent=latent,
        stages=stages,
        bottleneck=bottleneck,
    )


def build_encoder(config: EncoderConfig) -> keras.Model:
    """Build the Keras encoder: companded ``(batch, n_time, n_receivers, n_sources)`` -> ``(batch, latent)``.

    The latent is linear and unbounded. Conversion finds its int8 scale from the representative set.
    """
    part = keras.Input((config.n_time, config.n_receivers, config.n_sources), name="part")
    x = part
    for i, stage in enumerate(config.stages):
        name = f"conv{i}"
        x = layers.Conv2D(
            stage.filters, stage.kernel, stage.stride, padding="same", use_bias=False, name=name
        )(x)
        x = layers.ReLU(name=f"{name}_relu")(_normalised(x, name))
        for j in range(stage.residuals):
            x = _residual(x, f"{name}_res{j}")
    x = layers.Conv2D(config.bottleneck, 1, activation="relu", name="bottleneck")(x)
    x = layers.Flatten(name="flatten")(x)
    latent = layers.Dense(config.latent, name="latent")(x)
    return keras.Model(part, latent, name="device_encoder")


def _normalised(x, name: str, gamma: str = "ones"):
    """Apply the batch normalisation of the convolution ``name``."""
    return layers.BatchNormalization(momentum=0.98, gamma_initializer=gamma, name=f"{name}_norm")(x)


def _residual(x, name: str):
    """Add a depthwise-separable convolution of ``x`` to ``x``; initialised to the identity."""
    channels = x.shape[-1]
    y = layers.DepthwiseConv2D(RESIDUAL_KERNEL, padding="same", use_bias=False, name=f"{name}_depth")(x)
    y = layers.ReLU(name=f"{name}_depth_relu")(_normalised(y, f"{name}_depth"))
    y = layers.Conv2D(channels, 1, use_bias=False, name=f"{name}_point")(y)
    y = _normalised(y, f"{name}_point", gamma="zeros")
    return layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([x, y]))
