"""Choose companding parameters by measurement on training gathers.

Reflections arrive 40-60 dB below the direct wave. A uniform int8 code spends nearly all its levels on the direct wave.
``asinh(k x)/c`` trades some of that precision for the reflections. The trade is measured here per time window, so that
a late weak reflection counts as much as the direct wave.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from firmware_py.inference.companding import Companding, compress, thin_samples
from models.errors import ModelsError

CANDIDATES_K: tuple[float, ...] = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
N_WINDOWS = 10
QUIET_DB = -80.0
# Half a bit. Beyond the knee of the curve, a larger k gains little precision. It amplifies noise and the residue of the
# absorbing boundary, in which modelled gathers differ (docs/decisions/0002).
TOLERANCE_DB = 3.0


class CompandingError(ModelsError, ValueError):
    """The gathers cannot be used to choose companding parameters."""


def choose_companding(
    gathers: np.ndarray, decimation: int, candidates_k: Sequence[float] = CANDIDATES_K
) -> tuple[Companding, dict]:
    """Choose the companding whose int8 round trip has the best signal-to-noise ratio, averaged over time windows.

    For each k, ``c = asinh(k max|x|)`` over the decimated gathers, so that the code spans exactly their range. The
    decimated traces go through int8 and back. The signal-to-quantisation-noise ratio is taken in dB per trace and
    window (a tenth of the record), then averaged. Windows more than 80 dB below the largest sample lie before the first
    arrival and are ignored. The smallest k within ``TOLERANCE_DB`` of the best average is chosen.

    Args:
        gathers: Training data, ``(n, S, T, R)`` float32.
        decimation: Number of samples averaged into one.

    Returns:
        The companding and a report: ``{"thin", "peak", "chosen_k", "windows", "candidates": [{"k", "c", "mean_db",
            "worst_window_db", "window_db": [...]}]}``.

    Raises:
        CompandingError: The shape is wrong, samples are not finite, or all samples are zero.
    """
    gathers = np.asarray(gathers)
    if gathers.ndim != 4 or gathers.size == 0:
        raise CompandingError(
            f"gathers: expected (n, sources, samples, receivers), got {gathers.shape}; "
            "add a leading axis for a single gather"
        )
    if not candidates_k or min(candidates_k) <= 0:
        raise CompandingError(f"candidates_k: expected positive values, got {list(candidates_k)}")
    decimated = thin_samples(gathers.astype(np.float32), decimation, axis=2)
    peak = float(np.abs(decimated).max())
    if not np.isfinite(peak):
        raise CompandingError("gathers: expected finite samples, got NaN or infinity")
    if peak == 0.0:
        raise CompandingError("gathers: every sample is zero; nothing to choose companding parameters by")

    candidates: list[dict[str, Any]] = []
    for k in candidates_k:
        companding = Companding(k=float(k), c=float(np.arcsinh(k * peak)), thin=decimation)
        window_db = _window_snr_db(companding, decimated, peak)
        candidates.append(
            {
                "k": companding.k,
                "c": companding.c,
                "mean_db": float(np.mean(window_db)),
                "worst_window_db": float(np.min(window_db)),
                "window_db": [round(float(v), 2) for v in window_db],
            }
        )
    best_db = max(entry["mean_db"] for entry in candidates)
    good = [entry for entry in candidates if entry["mean_db"] >= best_db - TOLERANCE_DB]
    chosen = min(good, key=lambda entry: entry["k"])
    report = {
        "thin": decimation,
        "peak": peak,
        "chosen_k": chosen["k"],
        "windows": len(chosen["window_db"]),
        "candidates": candidates,
    }
    return Companding(k=chosen["k"], c=chosen["c"], thin=decimation), report


def _window_snr_db(companding: Companding, decimated: np.ndarray, peak: float) -> np.ndarray:
    """Return the signal-to-quantisation-noise ratio of each window with signal, in dB, averaged over traces.

    ``decimated`` is ``(n, S, T', R)``.
    """
    code = np.clip(np.rint(compress(decimated, companding) * 127.0), -127, 127)
    noise = np.sinh(code.astype(np.float64) / 127.0 * companding.c) / companding.k - decimated
    ratios = []
    floor = (peak * 10 ** (QUIET_DB / 20)) ** 2
    n_windows = min(N_WINDOWS, decimated.shape[2])
    for signal_part, noise_part in zip(
        np.array_split(decimated, n_windows, axis=2), np.array_split(noise, n_windows, axis=2), strict=True
    ):
        signal_power = np.mean(signal_part.astype(np.float64) ** 2, axis=2)
        noise_power = np.mean(noise_part**2, axis=2)
        loud = signal_power > floor
        if loud.any():
            # Floor for an exact round trip, which has no noise.
            ratio = signal_power[loud] / np.maximum(noise_power[loud], floor * 1e-4)
            ratios.append(10 * np.log10(ratio).mean())
    return np.array(ratios)
