"""Decide whether an adapted decoder may be published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Allowed increase of the error on the drawn test set, percent.
MAX_TEST_COST_PERCENT = 2.0


@dataclass(frozen=True)
class Figures:
    """Figures by which the gate judges a decoder.

    Attributes:
        test_mae: Error on the drawn test set, normalised maps.
        distance: Distance of re-encoded latents from those received, mean over the held-back events, in standard
            deviations of a latent (``central.verification.check``).
        misfit: Relative misfit of the recording, mean over the held-back events that have one; None without any.
    """

    test_mae: float
    distance: float
    misfit: float | None = None


def choose_round(before: Figures, rounds: Sequence[Figures]) -> tuple[int | None, str]:
    """Return the index of the round that explains the held-back events best, or None and the figure that failed.

    A round passes if its error on the test set is at most ``MAX_TEST_COST_PERCENT`` larger than ``before``, if its
    distance is smaller, and if its misfit, where there is one, is not larger.
    """
    limit = before.test_mae * (1 + MAX_TEST_COST_PERCENT / 100)
    in_test = [i for i, found in enumerate(rounds) if found.test_mae <= limit]
    if not in_test:
        best = min(found.test_mae for found in rounds)
        return None, (
            f"the error on the drawn test set is {best:.4f} after the best round, {before.test_mae:.4f} before, and at "
            f"most {limit:.4f} is allowed; give more --originals, a lower --learning-rate or more --minutes"
        )
    nearer = [i for i in in_test if rounds[i].distance < before.distance]
    if not nearer:
        best = min(rounds[i].distance for i in in_test)
        return None, (
            f"the latents of held-back events are {best:.4f} standard deviations off after the best round, "
            f"{before.distance:.4f} before; the decoder explains this survey no better. Give more events, or refine "
            "some from their recordings"
        )
    if before.misfit is None:
        passed = nearer
    else:
        misfits = {i: misfit for i in nearer if (misfit := rounds[i].misfit) is not None}
        if not misfits:
            return None, (
                f"expected a misfit of the recordings of held-back events, {before.misfit:.1%} before, found none "
                "after any round; give the same command again, which begins anew"
            )
        passed = [i for i, misfit in misfits.items() if misfit <= before.misfit]
        if not passed:
            return None, (
                f"the recordings of held-back events are {min(misfits.values()):.1%} off after the best round, "
                f"{before.misfit:.1%} before; give more events, or refine some from their recordings"
            )
    return min(passed, key=lambda i: rounds[i].distance), ""
