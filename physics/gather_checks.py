"""Check a gather before inference: peak, polarity, silent traces."""

from __future__ import annotations

import numpy as np

from physics.acquisition import Acquisition

# Full scale (largest sample in the companding range) of the released models, and the range of peaks of their training
# gathers as shares of it. Other models have the same shares.
RELEASED_FULL_SCALE = 49.48
PEAK_SHARES = (0.4, 1.2)
# Share of silent traces above which a map is unreliable: models are trained with a few per cent of dead receivers.
MAX_SILENT_SHARE = 0.25
# Distance in cells within which the direct wave dominates a trace. In the twenty shipped gathers, its positive lobe
# there is at least 1.37 times the negative one.
NEAR_CELLS = 10


def expected_peaks(full_scale: float = RELEASED_FULL_SCALE) -> tuple[float, float]:
    """Return the least and greatest expected peak for a model whose companding has range ``full_scale``."""
    low, high = PEAK_SHARES
    return low * full_scale, high * full_scale


def looks_reversed(gather: np.ndarray, acquisition: Acquisition) -> bool:
    """Return True if most traces near a source have reversed polarity.

    The source wavelet's main lobe is positive pressure, so the direct wave must be positive.

    Args:
        gather: ``(S, T, R)``.
        acquisition: The survey.
    """
    near = (
        np.abs(np.subtract.outer(acquisition.source_cells, acquisition.receiver_cells)) <= NEAR_CELLS
    ) & np.any(gather, axis=1)
    positive = gather.max(axis=1) > -gather.min(axis=1)
    return bool(near.any()) and float(np.mean(positive[near])) < 0.5


def notes_on(gather: np.ndarray, acquisition: Acquisition, peaks: tuple[float, float] | None) -> list[str]:
    """List what is unusual in a gather ``(S, T, R)``.

    ``peaks`` is the peak range of the model's training gathers; None skips that check.
    """
    peak = float(np.abs(gather).max())
    if peak == 0:
        return ["every sample is zero; its map shows nothing"]
    notes = []
    silent = np.count_nonzero(~gather.any(axis=1))
    traces = gather.shape[0] * gather.shape[2]
    if silent > MAX_SILENT_SHARE * traces:
        notes.append(
            f"{silent} of {traces} traces are silent, at most {MAX_SILENT_SHARE:.0%} were expected; its map is a guess"
        )
    if peaks is not None and not peaks[0] <= peak <= peaks[1]:
        notes.append(
            f"peak {peak:.3g}, and the model knows peaks of {peaks[0]:.3g} to {peaks[1]:.3g}; its map would be wrong"
        )
    if looks_reversed(gather, acquisition):
        notes.append(
            "polarity looks reversed: near the sources the first lobe is negative; its map would be wrong"
        )
    return notes
