"""Budget of a run, its progress, and the learning rate over it.

The learning rate follows the share of the budget spent: a short warm-up, then a cosine to zero. A run of any length
therefore ends annealed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from models.errors import TrainingError

WARM_UP_SHARE = 0.02
PRECISIONS = ("float32", "mixed_bfloat16")
OPTIMISERS = ("adamw", "muon")


@dataclass(frozen=True)
class Budget:
    """Budget of a run: ``minutes`` of training time or ``epochs`` over the data, and how to train.

    Attributes:
        precision: Arithmetic; mixed_bfloat16 is faster where the processor supports it.
        quantised: Train with the encoder's int8 rounding (``models.networks.quantised``).
        ordered: Train nested latents, with devices at reduced rates (``models.networks.nested_latent``). The name is a
            key of ``config.json``.
        optimiser: One of ``OPTIMISERS`` (``models.training.muon``).
        patience: Stop after this many epochs without a smaller validation loss; None trains the whole budget.
    """

    batch: int = 32
    learning_rate: float = 1.5e-3
    weight_decay: float = 1e-3
    minutes: float | None = None
    epochs: float | None = None
    seed: int = 0
    precision: str = "float32"
    quantised: bool = False
    ordered: bool = False
    optimiser: str = "adamw"
    patience: float | None = None

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.epochs is None):
            raise TrainingError("budget: expected either --minutes or --epochs; give one of them")
        duration = self.epochs if self.minutes is None else self.minutes
        if not _is_positive(duration) or self.batch < 1:
            raise TrainingError("budget: expected a positive duration and batch")
        if not _is_positive(self.learning_rate):
            raise TrainingError(
                f"budget: expected a positive learning rate, got {self.learning_rate:g}; correct --learning-rate"
            )
        if not 0 <= self.weight_decay < math.inf:
            raise TrainingError(
                f"budget: expected a weight_decay of 0 or more, got {self.weight_decay:g}; correct it"
            )
        if self.patience is not None and not _is_positive(self.patience):
            raise TrainingError(
                f"budget: expected a --patience of more than 0 epochs, got {self.patience}; leave it out to train the "
                "whole budget"
            )
        if self.seed < 0:
            raise TrainingError(
                f"budget: expected a seed of 0 or more, got {self.seed}; choose another --seed"
            )
        if self.precision not in PRECISIONS:
            raise TrainingError(
                f"budget: expected a precision of {', '.join(PRECISIONS)}; got {self.precision!r}"
            )
        if self.optimiser not in OPTIMISERS:
            raise TrainingError(
                f"budget: expected an optimiser of {', '.join(OPTIMISERS)}; got {self.optimiser!r}"
            )


def _is_positive(value: float | None) -> bool:
    """Return True for a positive, finite number; not for NaN."""
    return value is not None and 0 < value < math.inf


def learning_rate_at(share: float, peak: float) -> float:
    """Return the learning rate when ``share`` (0..1) of the budget is spent."""
    if share < WARM_UP_SHARE:
        return peak * (0.05 + 0.95 * share / WARM_UP_SHARE)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, (share - WARM_UP_SHARE) / (1 - WARM_UP_SHARE))))


@dataclass
class Progress:
    """Progress of a run, kept in the checkpoint. ``core_s`` is the processor time used."""

    step: int = 0
    epoch: float = 0.0
    elapsed_s: float = 0.0
    core_s: float = 0.0

    def share_of(self, budget: Budget) -> float:
        """Return the share of ``budget`` spent; 1 or more when it is used up."""
        if budget.minutes is not None:
            return self.elapsed_s / (60.0 * budget.minutes)
        return self.epoch / (budget.epochs or 1.0)
