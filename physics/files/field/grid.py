"""Resample traces of any rate to the survey's sampling and length."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from physics.acquisition import Acquisition
from physics.files.field.traces import FieldFileError

# Relative tolerance of sample rates. Recorders state rates such as 999.9999 Hz; over seconds the drift is microseconds.
RATE_TOLERANCE = 1e-5
# Largest numerator and denominator of the polyphase filter.
MAX_RATIO = 1000
# Distance from the shot, in samples, within which the first sample counts as at the shot.
ON_SAMPLE = 1e-3


def same_interval(a_s: float, b_s: float) -> bool:
    """Return True if two sample intervals agree within clock tolerance."""
    return abs(a_s - b_s) <= RATE_TOLERANCE * b_s


def window_samples(acquisition: Acquisition, interval_s: float) -> int:
    """Return the number of samples at ``interval_s`` in one record of the survey."""
    if same_interval(interval_s, acquisition.dt_s):
        return acquisition.n_time
    return int(np.ceil(acquisition.n_time * acquisition.dt_s / interval_s - 1e-9))


def resample(samples: np.ndarray, interval_s: float, acquisition: Acquisition, axis: int = 0) -> np.ndarray:
    """Resample to the survey's interval without aliases (polyphase filter)."""
    if same_interval(interval_s, acquisition.dt_s):
        return samples
    from scipy.signal import resample_poly

    ratio = Fraction(interval_s / acquisition.dt_s).limit_denominator(MAX_RATIO)
    if not ratio:
        raise FieldFileError(
            f"expected a sample interval of at least {1e3 * acquisition.dt_s / MAX_RATIO:g} ms, "
            f"got {1e3 * interval_s:g} ms"
        )
    return resample_poly(samples, ratio.numerator, ratio.denominator, axis=axis)


def record_on_grid(
    samples: np.ndarray, interval_s: float, first: float, acquisition: Acquisition
) -> np.ndarray:
    """Cut one record of the survey out of a trace and resample it.

    Args:
        samples: ``(n,)`` at ``interval_s``.
        interval_s: Sample interval of the trace.
        first: Index of the shot in ``samples``; a fractional index is interpolated linearly.
        acquisition: The survey.

    Returns:
        ``(n_time,)`` float64.

    Raises:
        FieldFileError: The record begins after the shot or ends too early, or has NaN or infinite samples.
    """
    if first < -ON_SAMPLE:
        raise FieldFileError(
            f"begins {-1e3 * first * interval_s:g} ms after the shot; expected a record from the shot on"
        )
    first = max(first, 0.0)
    need = window_samples(acquisition, interval_s)
    # Include samples beyond the window where available: the filter needs neighbours.
    margin = 25 * int(np.ceil(max(1.0, acquisition.dt_s / interval_s)))
    have = max(len(samples) - first, 0.0)
    low = round(first)
    if abs(first - low) < ON_SAMPLE:
        part = np.asarray(samples[low : low + need + margin], np.float64)
    else:
        low = int(first)
        near = np.asarray(samples[low : low + need + margin + 1], np.float64)
        part = np.interp(np.arange(first - low, len(near) - 1 + ON_SAMPLE), np.arange(len(near)), near)
    if len(part) < need:
        raise FieldFileError(
            f"expected {acquisition.n_time * acquisition.dt_s:g} s of record, got {have * interval_s:g} s"
        )
    if not np.isfinite(part[:need]).all():
        raise FieldFileError("holds NaN or infinite samples")
    part[~np.isfinite(part)] = 0.0
    return resample(part, interval_s, acquisition)[: acquisition.n_time]
