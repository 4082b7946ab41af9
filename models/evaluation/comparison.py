"""Compare finished runs on the same test data: errors, bytes on the links, model sizes, work on a device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from models.evaluation.evaluate import load_run, score_loaded
from models.evaluation.macs import count_macs
from models.networks.inversionnet import count_parameters
from models.networks.split import SplitInversionNet
from models.recipes import recipe_of


@dataclass(frozen=True)
class Compared:
    """Results of one run.

    Attributes:
        families: Errors by family, see ``models.evaluation.scores.score``.
        device_macs: Multiply-accumulates of one device for one event.

    Bytes are payloads of all devices together.
    """

    name: str
    families: dict[str, dict[str, float]]
    bytes_per_event: int
    parameters: int
    device_macs: int


def compare_runs(runs: list[Path], data: list[Path], missing: tuple[int, ...] = ()) -> list[Compared]:
    """Score every run of ``runs`` on ``data`` in float; an InversionNet also split, with int8 activations.

    Raises the errors of ``models.evaluation.evaluate.evaluate_run``.
    """
    rows = []
    for run in runs:
        found = load_run(run, data, missing)
        a, kind = found.held_out.acquisition, found.config.kind
        parameters = count_parameters(found.network)
        cost = recipe_of(kind).account(found.parts, a)
        rows.append(
            Compared(
                run.name,
                score_loaded(found, found.network),
                cost.bytes_per_event,
                parameters,
                cost.device_macs,
            )
        )
        if kind == "inversionnet":
            split = SplitInversionNet(found.network, a)
            sent = a.n_devices * split.bytes_per_device
            families = score_loaded(found, split)
            rows.append(Compared(f"{run.name}, split", families, sent, parameters, count_macs(split.device)))
    return rows
