"""Run many training steps in one call on the accelerator (JAX), including sampling and augmentation.

The augmentations and their strengths are those of ``models.data.batches`` and ``models.data.field_augmentation``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from firmware_py.inference.companding import Companding
from models.data import batches, field_augmentation
from models.data.simulated import STORED_AVERAGE, Simulated, whole_records
from models.networks.nested_latent import BITS, LOWER_RATE_SHARE, lower_rates
from physics.acquisition import Acquisition

# Steps per turn: up to a second of GPU time, so that the host's work between turns is negligible.
STEPS_A_TURN = 40

Prepare = Callable[[Any, Any, Any], tuple[Any, Any]]


def flipped(gathers: Any, maps: Any, key: Any, acquisition: Acquisition, share: float) -> tuple[Any, Any]:
    """Mirror each sample with probability ``share``; see ``models.data.gathers.DecimatedSet.mirrored``.

    Args:
        gathers: With the shots of ``acquisition.with_twins()``, ``(n, T', R, S + n_twins)``.
        maps: ``(n, nz, nx)``.

    Returns:
        Gathers ``(n, T', R, S)`` and maps.
    """
    plain, order = gathers[..., : acquisition.n_sources], acquisition.mirror_order()
    if order is None:
        return plain, maps
    shots, receivers = order
    flip = jax.random.bernoulli(key, share, (len(maps),))
    mirrored = gathers[:, :, receivers][..., shots]
    plain = jnp.where(flip[:, None, None, None], mirrored, plain)
    return plain, jnp.where(flip[:, None, None], maps[:, :, ::-1], maps)


def prepare_whole(acquisition: Acquisition, log_range: Sequence[float]) -> Prepare:
    """Prepare samples for a centralised network, as ``models.data.batches.InversionNetBatches.training`` does."""
    matrix = jnp.asarray(whole_records(acquisition.n_time, STORED_AVERAGE))
    share = batches.MIRRORED_SHARE
    low, high = log_range

    def prepare(gathers: Any, maps: Any, key: Any) -> tuple[Any, Any]:
        gathers, maps = flipped(
            gathers.astype(jnp.float32), maps.astype(jnp.float32), key, acquisition, share
        )
        # Full float32: weak reflections are thousands of times smaller than the direct wave.
        whole = jnp.einsum("ts,nsrc->ntrc", matrix, gathers, precision="highest")
        scaled = 2.0 * (jnp.sign(whole) * jnp.log1p(jnp.abs(whole)) - low) / (high - low) - 1.0
        return scaled, maps[..., None]

    return prepare


def prepare_parts(acquisition: Acquisition, companding: Companding, nested: int | None) -> Prepare:
    """Prepare stored samples for EPIC, as ``models.data.batches.EpicBatches.training`` does."""
    a = acquisition
    ratio, n_decimated = companding.thin // STORED_AVERAGE, a.n_time // companding.thin
    mirror = batches.MIRRORED_SHARE
    receivers = a.padded_device_receivers()
    levels = batches.noise_levels(companding)

    def prepare(gathers: Any, maps: Any, key: Any) -> tuple[Any, Any]:
        keys = jax.random.split(key, 5)
        decimated = gathers[:, : n_decimated * ratio].astype(jnp.float32)
        decimated = decimated.reshape(len(maps), n_decimated, ratio, a.n_receivers, -1).mean(axis=2)
        decimated, maps = flipped(decimated, maps.astype(jnp.float32), keys[0], a, mirror)
        # Samples are already in random order, so the first ones can be used.
        n_augmented = round(field_augmentation.AUGMENTED_SHARE * len(maps))
        augmented = field_augmented(decimated[:n_augmented], a, a.dt_s * companding.thin, keys[1])
        noisy = with_noise(jnp.concatenate([augmented, decimated[n_augmented:]]), keys[2], levels)
        companded = jnp.arcsinh(companding.k * noisy) / companding.c
        companded = jnp.pad(companded, ((0, 0), (0, 0), (0, 1), (0, 0)))
        inputs = {
            "parts": companded[:, :, receivers].transpose(0, 2, 1, 3, 4),
            "mask": devices_present(len(maps), a.n_devices, keys[3]),
        }
        if nested is not None:
            inputs["values"], inputs["bits"] = rates(len(maps), a.n_devices, nested, keys[4])
        return inputs, maps[..., None]

    return prepare


def field_augmented(gathers: Any, acquisition: Acquisition, sample_s: float, key: Any) -> Any:
    """Apply ``models.data.field_augmentation.augment_field`` to decimated gathers ``(n, T', R, S)``."""
    n, n_time, n_receivers, _ = gathers.shape
    keys = jax.random.split(key, 5)
    gains = jnp.exp(field_augmentation.GAIN_SPREAD * jax.random.normal(keys[0], (n, n_receivers)))
    reversed_ = jax.random.bernoulli(keys[1], field_augmentation.REVERSED_SHARE, gains.shape)
    dead = jax.random.bernoulli(keys[2], field_augmentation.DEAD_SHARE, gains.shape)
    beyond = field_augmentation.beyond_sparse_spread(jax.random.uniform(keys[4], (n, 4)), n_receivers)
    gains = jnp.where(dead | beyond, 0.0, jnp.where(reversed_, -gains, gains))
    late_s = field_augmentation.JITTER_S * jax.random.normal(keys[3], (n, acquisition.n_devices))
    device_of = np.zeros(n_receivers, int)
    for device, group in enumerate(acquisition.device_receivers):
        device_of[list(group)] = device
    spectrum = jnp.fft.rfft(gathers, 2 * n_time, axis=1)
    frequency_hz = np.fft.rfftfreq(2 * n_time, sample_s)
    turn = jnp.exp(-2j * np.pi * frequency_hz[None, :, None] * late_s[:, device_of][:, None])
    shifted = jnp.fft.irfft(spectrum * turn[..., None], 2 * n_time, axis=1)[:, :n_time]
    return shifted * gains[:, None, :, None]


def with_noise(gathers: Any, key: Any, between: tuple[float, float]) -> Any:
    """Apply ``models.data.batches.add_noise`` to decimated gathers."""
    which, level, noise = jax.random.split(key, 3)
    low, high = np.log(between)
    levels = jnp.exp(jax.random.uniform(level, (len(gathers),), minval=low, maxval=high))
    levels = levels * jax.random.bernoulli(which, batches.NOISE_SHARE, levels.shape)
    return gathers + levels[:, None, None, None] * jax.random.normal(noise, gathers.shape)


def devices_present(n: int, n_devices: int, key: Any) -> Any:
    """Draw device masks as ``models.data.batches.drop_devices``: ``(n, n_devices)`` float32."""
    which, count, order = jax.random.split(key, 3)
    lacking = jax.random.bernoulli(which, batches.DROP_OUT_SHARE, (n,))
    missing = jnp.minimum(jax.random.geometric(count, 0.5, (n,)), n_devices - 1) * lacking
    place = jnp.argsort(jax.random.uniform(order, (n, n_devices)), axis=1)
    return (place >= missing[:, None]).astype(jnp.float32)


def rates(n: int, n_devices: int, latent: int, key: Any) -> tuple[Any, Any]:
    """Draw rates as ``models.networks.nested_latent.draw_rates``: values sent and bits, ``(n, n_devices)`` float32."""
    which, alike, choose = jax.random.split(key, 3)
    lower = jnp.array(lower_rates(latent), jnp.float32)
    choice = jax.random.randint(choose, (n, n_devices), 0, len(lower))
    choice = jnp.where(jax.random.bernoulli(alike, 0.5, (n, 1)), choice[:, :1], choice)
    chosen = lower[choice]
    is_lower = jax.random.bernoulli(which, LOWER_RATE_SHARE, (n, 1))
    return jnp.where(is_lower, chosen[..., 0], latent), jnp.where(is_lower, chosen[..., 1], BITS[0])


class OnDevice:
    """Provide the batches and steps of ``models.training.training.train`` for a ``Simulated`` set.

    A turn of ``turn`` steps of ``batch`` samples counts as one batch. The turn can be compiled for shards of ``shapes``
    (``models.data.simulated.shard_shapes``) before the samples exist; ``fill`` adds them.
    """

    def __init__(
        self,
        network: keras.Model,
        loss: Callable[[Any, Any], Any],
        prepare: Prepare,
        shapes: tuple[tuple[int, ...], tuple[int, ...]],
        batch: int,
        turn: int = STEPS_A_TURN,
    ) -> None:
        self._network = network
        self.batch, self.turn = batch, turn
        self._queue: list[int] = []
        optimizer = network.optimizer
        optimizer.build(network.trainable_variables)
        rate_at = [v.path.endswith("learning_rate") for v in optimizer.variables].index(True)

        def loss_of(trainable, others, inputs, maps):
            predicted, others = network.stateless_call(trainable, others, inputs, training=True)
            return loss(maps, predicted), others

        def step(state, chosen, gathers, maps, rate):
            trainable, others, optimised = state
            rows, key = chosen
            inputs, truth = prepare(gathers[rows], maps[rows], key)
            (value, others), gradients = jax.value_and_grad(loss_of, has_aux=True)(
                trainable, others, inputs, truth
            )
            optimised = [rate if i == rate_at else v for i, v in enumerate(optimised)]
            trainable, optimised = optimizer.stateless_apply(optimised, gradients, trainable)
            return (trainable, others, optimised), value

        def several(state, gathers, maps, rows, key, rate):
            keys = jax.random.split(key, turn)
            state, values = jax.lax.scan(
                lambda now, chosen: step(now, chosen, gathers, maps, rate), state, (rows, keys)
            )
            return state, jnp.mean(values)

        stored = [jax.ShapeDtypeStruct(shape, jnp.float16) for shape in shapes]
        rows = jax.ShapeDtypeStruct((turn, batch), jnp.int32)
        example = (self._state(), *stored, rows, jax.random.key(0), np.float32(0.0))
        self._lowered = jax.jit(several, donate_argnums=0).lower(*example)
        self._several: Any = None

    def compile(self) -> None:
        """Compile the turn. Threads may compile several turns at once."""
        self._several = self._lowered.compile()

    def fill(self, simulated: Simulated, plain: Any) -> None:
        """Set the samples, whose shapes must match, and the validation batches on the host."""
        self._shards, self.data, self.plain = simulated.shards, plain.data, plain.plain

    def _state(self) -> tuple[list, list, list]:
        network = self._network
        return (
            [v.value for v in network.trainable_variables],
            [v.value for v in network.non_trainable_variables],
            [v.value for v in network.optimizer.variables],
        )

    def training(self, indices: np.ndarray, rng: np.random.Generator) -> tuple[Any, Any]:
        """Choose the samples of a turn: one shard, each sample once, in random order.

        Only the number of ``indices`` is used; the samples are chosen here.
        """
        if not self._queue:
            self._queue = list(rng.permutation(len(self._shards)))
        shard = int(self._queue.pop())
        rows = rng.permutation(len(self._shards[shard][1]))
        rows = np.resize(rows, (self.turn, self.batch)).astype(np.int32)
        return (shard, rows), int(rng.integers(2**31))

    def learn(self, chosen: tuple[int, np.ndarray], seed: int) -> float:
        """Run one turn, update the network's variables and return the mean loss."""
        shard, rows = chosen
        network = self._network
        # A copy, because the variable's own buffer is donated with the state.
        rate = np.float32(network.optimizer.learning_rate)
        state, loss = self._several(self._state(), *self._shards[shard], rows, jax.random.key(seed), rate)
        variables = (
            network.trainable_variables,
            network.non_trainable_variables,
            network.optimizer.variables,
        )
        for kinds, values in zip(variables, state, strict=True):
            for variable, value in zip(kinds, values, strict=True):
                variable.assign(value)
        return float(loss)
