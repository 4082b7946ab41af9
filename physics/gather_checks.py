"""What a look at a gather alone tells, before any network sees it: loudness, polarity, silence."""

from __future__ import annotations

import numpy as np

from physics.acquisition import Acquisition

# Loudest samples of gathers that the released models were trained on; the same relation holds for other
# models' full scale, the loudest sample that their companding spans.
RELEASED_FULL_SCALE = 49.48
PEAK_SHARES = (0.4, 1.2)
# Receivers this near a source, in cells, record the direct wave loudest. Over the twenty shipped gathers its
# positive lobe is there at least 1.37 times the negative one.
NEAR_CELLS = 10


def expected_peaks(full_scale: float = RELEASED_FULL_SCALE) -> tuple[float, float]:
    """Least and largest expected peak of a gather for a model whose companding spans ``full_scale``."""
    low, high = PEAK_SHARES
    return low * full_scale, high * full_scale


def looks_reversed(gather: np.ndarray, acquisition: Acquisition) -> bool:
    """Return True if most traces near a source have the wrong polarity.

    A source that pushes sends a wave of positive pressure first; its main lobe is positive.

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
    """List what is unusual in a gather ``(S, T, R)`` for a model trained on ``peaks``; None judges no peak."""
    peak = float(np.abs(gather).max())
    if peak == 0:
        return ["every sample is zero; its map shows nothing"]
    notes = []
    if peaks is not None and not peaks[0] <= peak <= peaks[1]:
        notes.append(
            f"peak {peak:.3g}, and the model knows peaks of {peaks[0]:.3g} to {peaks[1]:.3g}; its map would be wrong"
        )
    if looks_reversed(gather, acquisition):
        notes.append(
            "polarity looks reversed: near the sources the first lobe is negative; its map would be wrong"
        )
    return notes
