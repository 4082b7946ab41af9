"""Fusion decoder: latents of the devices present -> velocity map and its uncertainty.

Each latent becomes a few tokens that carry the position of the device's receivers. The tokens attend to each other.
Queries at map positions (x, z) attend to the tokens by multi-head cross-attention (EPIC, arXiv 2603.09032, section 4).
A small head outputs the map. A key mask hides absent devices, so any non-empty subset decodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np
from keras import layers, ops

# Width of the decoder without attention; it has seven times the weights of the one with attention, at the same speed.
CONCATENATED_WIDTH = 512
CONCATENATED_CHANNELS = 32


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the decoder. ``n_depth`` and ``n_width`` must be multiples of ``patch``.

    ``pixel_layers`` are residual blocks at the map's own resolution. A configuration of version 0.1 has none.

    Two options are for ablation. Without ``attention``, latents are concatenated (zeros for absent devices) and pass
    through dense layers. Without ``positions``, tokens carry no receiver positions.
    """

    n_devices: int
    latent: int
    n_depth: int
    n_width: int
    patch: int = 5
    width: int = 96
    heads: int = 4
    tokens_per_device: int = 4
    self_layers: int = 2
    cross_layers: int = 2
    refine_layers: int = 2
    pixel_channels: int = 8
    pixel_layers: int = 0
    attention: bool = True
    positions: bool = True

    def __post_init__(self) -> None:
        for name in ("n_depth", "n_width"):
            if getattr(self, name) % self.patch:
                raise ValueError(
                    f"decoder: expected {name} to be a multiple of patch={self.patch}, "
                    f"got {getattr(self, name)}; choose another patch"
                )

    @property
    def rows(self) -> int:
        return self.n_depth // self.patch

    @property
    def cols(self) -> int:
        return self.n_width // self.patch


# Sizes by name. "small" trains on two processor cores in an hour. "deep" has the same width, so it can start from the
# weights of "small".
DECODERS: dict[str, dict[str, int]] = {
    "small": {"pixel_layers": 1},
    "deep": {"self_layers": 3, "cross_layers": 4, "refine_layers": 6, "pixel_layers": 1},
}


def fourier_features(values: np.ndarray, n_frequencies: int = 6) -> np.ndarray:
    """Sines and cosines of positions in 0..1: ``(..., d)`` -> ``(..., d * 2 * n_frequencies)``."""
    angles = np.asarray(values, dtype=np.float32)[..., None] * (np.pi * 2.0 ** np.arange(n_frequencies))
    features = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    return features.reshape(*features.shape[:-2], -1).astype(np.float32)


@keras.saving.register_keras_serializable("epic")
class PositionFeatures(layers.Layer):
    """Apply ``fourier_features`` as a layer: ``(batch, n, d)`` -> ``(batch, n, d * 2 * n_frequencies)``."""

    def __init__(self, n_frequencies: int = 6, **kwargs) -> None:
        super().__init__(**kwargs)
        self.n_frequencies = n_frequencies

    def call(self, positions):
        scale = ops.convert_to_tensor(np.pi * 2.0 ** np.arange(self.n_frequencies), positions.dtype)
        angles = ops.expand_dims(positions, -1) * scale
        features = ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)
        n, d = positions.shape[1:]
        return ops.reshape(features, (-1, n, d * 2 * self.n_frequencies))

    def get_config(self) -> dict:
        return {**super().get_config(), "n_frequencies": self.n_frequencies}


@keras.saving.register_keras_serializable("epic")
class MapQueries(layers.Layer):
    """Create one query per map patch from its position: any ``(batch, ...)`` -> ``(batch, rows * cols, width)``."""

    def __init__(self, rows: int, cols: int, width: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.rows, self.cols, self.width = rows, cols, width
        self.project = layers.Dense(width, name="project")

    def build(self, input_shape) -> None:
        z, x = np.meshgrid(
            (np.arange(self.rows) + 0.5) / self.rows, (np.arange(self.cols) + 0.5) / self.cols, indexing="ij"
        )
        self.features = fourier_features(np.stack([x, z], -1).reshape(-1, 2))
        self.project.build((None, self.features.shape[-1]))
        self.table = self.add_weight(
            shape=(self.rows * self.cols, self.width), initializer="random_normal", name="table"
        )

    def call(self, like):
        queries = self.project(ops.convert_to_tensor(self.features)) + self.table
        return ops.broadcast_to(queries[None], (ops.shape(like)[0], self.rows * self.cols, self.width))

    def get_config(self) -> dict:
        return {**super().get_config(), "rows": self.rows, "cols": self.cols, "width": self.width}


@keras.saving.register_keras_serializable("epic")
class PixelShuffle(layers.Layer):
    """``(batch, rows, cols, c * patch^2)`` -> ``(batch, rows * patch, cols * patch, c)``."""

    def __init__(self, patch: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.patch = patch

    def call(self, x):
        rows, cols, channels = x.shape[1:]
        p = self.patch
        x = ops.reshape(x, (-1, rows, cols, p, p, channels // p**2))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (-1, rows * p, cols * p, channels // p**2))

    def get_config(self) -> dict:
        return {**super().get_config(), "patch": self.patch}


def _attend(x, memory, mask, heads: int, name: str):
    """Pre-norm attention of ``x (b, n, d)`` to ``memory (b, m, d)``; ``mask (b, 1, m)`` hides keys."""
    width = x.shape[-1]
    queries = layers.LayerNormalization(epsilon=1e-5, name=f"{name}_norm")(x)
    keys = queries if memory is None else memory
    x = x + layers.MultiHeadAttention(heads, width // heads, name=f"{name}_attention")(
        queries, keys, attention_mask=mask
    )
    y = layers.LayerNormalization(epsilon=1e-5, name=f"{name}_mlp_norm")(x)
    y = layers.Dense(2 * width, activation="relu", name=f"{name}_mlp_up")(y)
    return x + layers.Dense(width, name=f"{name}_mlp_down")(y)


def _attended(config: DecoderConfig, latents, positions, mask):
    """Return map queries after attention to the tokens of the devices present: ``(batch, rows, cols, width)``."""
    n, k, width = config.n_devices, config.tokens_per_device, config.width
    tokens = layers.Dense(k * width, name="tokens")(latents)
    if config.positions:
        place = PositionFeatures(name="place_features")(positions)
        tokens = tokens + layers.Dense(k * width, name="place")(place)
    tokens = layers.Reshape((n * k, width), name="split")(tokens)
    present = ops.repeat(mask, k, axis=1)[:, None, :]
    for i in range(config.self_layers):
        tokens = _attend(tokens, None, present, config.heads, f"self{i}")
    tokens = layers.LayerNormalization(epsilon=1e-5, name="tokens_norm")(tokens)
    x = MapQueries(config.rows, config.cols, width, name="queries")(tokens)
    for i in range(config.cross_layers):
        x = _attend(x, tokens, present, config.heads, f"cross{i}")
    return layers.Reshape((config.rows, config.cols, width), name="grid")(x)


def _concatenated(config: DecoderConfig, latents, mask):
    """Apply dense layers to all latents, concatenated in device order: ``(batch, rows, cols, width)``."""
    x = layers.Flatten(name="side_by_side")(latents * mask[..., None])
    for i in range(2):
        x = layers.Dense(CONCATENATED_WIDTH, activation="relu", name=f"dense{i}")(x)
    x = layers.Dense(config.rows * config.cols * CONCATENATED_CHANNELS, activation="relu", name="to_grid")(x)
    x = layers.Reshape((config.rows, config.cols, CONCATENATED_CHANNELS), name="grid")(x)
    return layers.Conv2D(config.width, 1, name="widen")(x)


def build_decoder(config: DecoderConfig) -> keras.Model:
    """Build the Keras model of the fusion decoder.

    Inputs: ``latents (batch, n_devices, latent)`` float, ``positions (batch, n_devices, 2)`` as in
    ``Acquisition.device_positions``, ``mask (batch, n_devices)``, 1 for devices present.

    Outputs: ``velocity`` and ``log_scale``, both ``(batch, n_depth, n_width, 1)``. ``velocity`` is the normalised map
    in about [-1, 1]. ``log_scale`` is the natural log of the Laplace scale of its error.
    """
    latents = keras.Input((config.n_devices, config.latent), name="latents")
    positions = keras.Input((config.n_devices, 2), name="positions")
    mask = keras.Input((config.n_devices,), name="mask")
    x = (
        _attended(config, latents, positions, mask)
        if config.attention
        else _concatenated(config, latents, mask)
    )
    for i in range(config.refine_layers):
        y = layers.LayerNormalization(epsilon=1e-5, name=f"refine{i}_norm")(x)
        y = layers.Conv2D(config.width, 3, padding="same", activation="relu", name=f"refine{i}")(y)
        x = x + layers.Conv2D(config.width, 1, name=f"refine{i}_mix")(y)
    x = layers.Conv2D(config.pixel_channels * config.patch**2, 1, activation="relu", name="expand")(x)
    x = PixelShuffle(config.patch, name="shuffle")(x)
    x = layers.Conv2D(2 * config.pixel_channels, 3, padding="same", activation="relu", name="pixels")(x)
    # The shuffle draws each patch by itself; these layers see across its edges.
    for i in range(config.pixel_layers):
        y = layers.Conv2D(4 * config.pixel_channels, 3, padding="same", activation="relu", name=f"pixels{i}")(
            x
        )
        x = x + layers.Conv2D(2 * config.pixel_channels, 1, name=f"pixels{i}_mix")(y)
    # The output stays in float32 under mixed precision: bfloat16 has steps of 6 m/s and more.
    out = layers.Conv2D(2, 3, padding="same", dtype="float32", name="out")(x)
    velocity = layers.Identity(name="velocity")(out[..., :1])
    log_scale = layers.Identity(name="log_scale")(out[..., 1:])
    return keras.Model(
        {"latents": latents, "positions": positions, "mask": mask},
        {"velocity": velocity, "log_scale": log_scale},
        name="fusion_decoder",
    )
