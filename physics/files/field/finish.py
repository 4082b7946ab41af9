"""Last steps of every import: apply the gain and list silent traces."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from physics.acquisition import Acquisition
from physics.files.field.grid import resample
from physics.files.field.traces import FieldFileError, named


@dataclass(frozen=True)
class FieldGather:
    """A ``gather (S, T, R)`` float32 and the processing steps that made it."""

    gather: np.ndarray
    steps: tuple[str, ...]

    @property
    def silent_share(self) -> float:
        """Share of (source, receiver) traces without a signal."""
        return float(np.mean(~np.any(self.gather, axis=1)))


def check_gain(gain: float) -> None:
    """Raise ``FieldFileError`` unless ``gain`` is a usable factor."""
    if not np.isfinite(gain) or gain == 0:
        raise FieldFileError(f"gain: expected a finite number other than 0, got {gain:g}")


def finish_gather(
    source: str, traces: np.ndarray, dt_s: float, acquisition: Acquisition, gain: float, steps: list[str]
) -> FieldGather:
    """Resample traces that are cut at the shots, apply the gain and list silent traces.

    Args:
        source: Name of the recording, for error messages.
        traces: ``(S, T', R)`` sampled at ``dt_s``; zeros where nothing was recorded.
        dt_s: Sample interval of ``traces``.
        acquisition: The survey.
        gain: Factor on the samples.
        steps: Processing steps so far.

    Raises:
        FieldFileError: The record is too short, every sample is zero, or the gain overflows float32.
    """
    check_gain(gain)
    bad = ~np.isfinite(traces).all(axis=1)
    told = [
        f"source {s} {named('receiver', np.flatnonzero(bad[s]).tolist())}: NaN or infinite samples; silent"
        for s in np.flatnonzero(bad.any(axis=1))
    ]
    gather = np.where(bad[:, None, :], 0.0, traces)
    have, need = gather.shape[1] * dt_s, acquisition.n_time * acquisition.dt_s
    resampled = resample(gather, dt_s, acquisition, axis=1)
    if resampled is not gather:
        told.append(f"resampled from {1e3 * dt_s:g} to {1e3 * acquisition.dt_s:g} ms (polyphase)")
    if resampled.shape[1] < acquisition.n_time:
        raise FieldFileError(f"{source}: expected {need:g} s of record, got {have:g} s")
    if resampled.shape[1] > acquisition.n_time:
        told.append(f"cut to {need:g} s")
    return multiply(source, resampled[:, : acquisition.n_time], gain, [*steps, *told])


def multiply(source: str, gather: np.ndarray, gain: float, steps: list[str]) -> FieldGather:
    """Apply the gain to a gather on the grid and list its silent traces. Raises ``FieldFileError``."""
    check_gain(gain)
    silent = ~np.any(gather, axis=1)
    if silent.all():
        raise FieldFileError(f"{source}: every sample is zero")
    with np.errstate(over="ignore"):
        multiplied = (gather * gain).astype(np.float32)
    if not np.isfinite(multiplied).all() or np.any(~np.any(multiplied, axis=1) & ~silent):
        raise FieldFileError(
            f"gain: {gain:g} times samples of up to {np.abs(gather).max():.3g} leaves the range of float32; "
            "give another --gain"
        )
    told = [f"multiplied by {gain:g}"] if gain != 1.0 else []
    if silent.any():
        told.append(describe_silent(silent))
    return FieldGather(multiplied, (*steps, *told))


def describe_silent(silent: np.ndarray) -> str:
    """List every silent trace of ``silent (S, R)`` bool: first receivers silent for all sources, then by source."""
    always = silent.all(axis=0)
    parts = [named("receiver", np.flatnonzero(always).tolist())] if always.any() else []
    for source in range(len(silent)):
        some = np.flatnonzero(silent[source] & ~always).tolist()
        if len(some) == np.sum(~always):
            parts.append(f"source {source} whole")
        elif some:
            parts.append(f"source {source} {named('receiver', some)}")
    return f"{int(silent.sum())} of {silent.size} traces silent: {'; '.join(parts)}"
