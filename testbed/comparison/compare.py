"""``epic testbed compare``: run EPIC and its baselines, each a centre and five devices, over the same emulated links.

Each run of a system over a link has these conditions in turn: the link as it is, 1 % and 5 % of TCP segments lost, one
device missing. Each device has a proxy that emulates the link and times all traffic.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path

import numpy as np

from firmware_py.inference.bundle import Bundle, load_bundle
from firmware_py.protocol.rate import RateError
from physics.acquisition import Acquisition
from testbed.board_speed import Slowdown, slowdown
from testbed.comparison.accounting import ConditionAccount
from testbed.comparison.baselines import NETWORKS, SCHEMES, find_trained, prepare, training_of
from testbed.comparison.goals import ratios
from testbed.comparison.run import CONDITIONS, Comparison, Run, check_length, is_epic, latent_bytes
from testbed.emulation.links import LinkProfile, find_link
from testbed.emulation.tbf import TbfError, cross_check
from testbed.errors import TestbedError
from testbed.run import Model, load_events, make_keys, prepare_folder

SYSTEMS = ("epic", "epic-32", "epic-8", *SCHEMES)


@dataclass(frozen=True)
class ComparisonPlan:
    """Systems, links and events of a comparison.

    Attributes:
        systems: Names. ``epic-4bit`` sends 4 bits per latent value, ``epic-32`` sends 32 bytes per latent; the model
            must support these rates.
        links: Names of emulated links.
        events: Number of events under a link's own conditions.
        data: OpenFWI gather files; without any, the shipped samples are used.
        trained: Runs of `epic train inversionnet` and `epic train federated` for the baselines' weights.
        board: Slow the devices' encoding to the speed of this board.
    """

    systems: list[str]
    links: list[str]
    events: int
    data: list[Path] = field(default_factory=list)
    trained: list[Path] = field(default_factory=list)
    board: str | None = None

    def check(self) -> None:
        """Raise ``TestbedError`` if there is no event, or a name is given twice."""
        if self.events < 1:
            raise TestbedError(f"compare: expected one event or more, got {self.events}")
        for given in (self.systems, self.links):
            if len(set(given)) < len(given):
                raise TestbedError(f"compare: expected each name once, got {','.join(given)}")


def compare(
    plan: ComparisonPlan, model: Model, out: Path, on_step: Callable[[str], None] = lambda step: None
) -> dict:
    """Run every system over every link; return the results and write them to ``out``/results.json.

    Raises:
        TestbedError, LinkError, SchemeError, BoardError: A run failed or cannot be set up. Errors of the inputs are
            passed on.
    """
    began_s, began_load = time.monotonic(), os.getloadavg()[0]
    plan.check()
    profiles = [find_link(name) for name in plan.links]
    bundle = load_bundle(model.bundle)
    for system in plan.systems:
        _check_system(system, bundle)
    trained = find_trained(plan.trained)
    trained_for = {kind: f"`{run}`, {training_of(run)}" for kind, run in trained.items()}
    acquisition = Acquisition.from_dict(bundle.manifest["acquisition"])
    counts = [max(min(plan.events, 4), int(plan.events * condition.share)) for condition in CONDITIONS]
    sizes = {system: _message_bytes(system, acquisition, bundle) for system in plan.systems}
    for profile, system in product(profiles, plan.systems):
        check_length(system, profile, counts, sizes[system], acquisition.n_devices)
    first = load_events(plan.data, plan.events, acquisition)
    samples = [sample for count in counts for sample in first[:count]]
    if plan.board:
        on_step(f"measuring this machine against a {plan.board}")
    slower = slowdown(plan.board) if plan.board else None
    prepare_folder(out)
    gathers = np.stack([sample.gather for sample in samples]).astype(np.float32)
    on_step("preparing the baselines")
    if set(plan.systems) & set(SCHEMES):
        prepare(out, gathers[:20], acquisition, bundle.companding, trained)
    comparison = Comparison(
        out,
        model,
        acquisition,
        make_keys(out / "keys", acquisition.n_devices),
        gathers,
        bundle.coding.latent,
        sizes,
    )
    results: dict = {
        "events": plan.events,
        "model": bundle.name,
        "model_hash": bundle.model_hash.hex(),
        "trained_baselines": trained_for,
        "board": asdict(slower) if slower else None,
        "encoder_macs": _encoder_macs(bundle),
        "links": {profile.name: _described(profile) for profile in profiles},
        "tbf": _cross_checks(profiles, on_step),
        "runs": [],
    }
    truths = [sample.map_mps for sample in samples]
    for profile, system in product(profiles, plan.systems):
        accounts = Run(comparison, system, profile).conditions(counts, on_step)
        maps_count = is_epic(system) or NETWORKS[system] in trained
        judged = truths if maps_count else None
        results["runs"] += _summaries(system, profile, accounts, judged, acquisition, slower)
        (out / "results.json").write_text(json.dumps(results, indent=2))
    results["ratios"] = ratios(results)
    results["took_s"] = round(time.monotonic() - began_s)
    results["load"] = _machine_load(began_load)
    (out / "results.json").write_text(json.dumps(results, indent=2))
    return results


def _machine_load(before: float) -> dict:
    """Return the load average ``before`` and now, and what else slows a run."""
    return {
        "before": round(before, 1),
        "after": round(os.getloadavg()[0], 1),
        "cores": os.cpu_count(),
        "nice": os.nice(0),
    }


def _summaries(
    system: str,
    profile: LinkProfile,
    accounts: list[ConditionAccount],
    truths: list[np.ndarray | None] | None,
    acquisition: Acquisition,
    slower: Slowdown | None,
) -> list[dict]:
    """Return one system's results over one link, a dictionary a condition; ``truths`` is None without a map error."""
    found = []
    for condition, account in zip(CONDITIONS, accounts, strict=True):
        run = {
            "system": system,
            "link": profile.name,
            "condition": condition.name,
            **account.summary(profile, truths, acquisition),
        }
        if slower:
            run["on_board"] = account.slowed(slower.code, slower.network).latency()
        found.append(run)
    return found


def _cross_checks(profiles: list[LinkProfile], on_step: Callable[[str], None]) -> list[dict] | str:
    """Compare the links' rates with the kernel's shaper, or return why that is not possible."""
    on_step("holding the links against tbf")
    try:
        return [asdict(cross_check(profile)) for profile in profiles if profile.up_bytes_per_s]
    except TbfError as error:
        return str(error)


def _check_system(system: str, bundle: Bundle) -> None:
    if not is_epic(system) and system not in SCHEMES:
        raise TestbedError(f"compare: expected systems of {', '.join(SYSTEMS)}; got {system!r}")
    if (rate := latent_bytes(system, bundle.coding.latent)) is not None:
        try:
            bundle.coding.rate(rate)
        except RateError as error:
            raise TestbedError(f"{system}: {bundle.name}: {error}") from None
    if system == "raw-compressed":
        # The child processes need it. Check now, not after minutes of other runs.
        import zstandard  # noqa: F401


def _encoder_macs(bundle: Bundle) -> int:
    from models.evaluation.comparison import count_macs
    from models.networks.float_encoder import float_encoder

    return count_macs(float_encoder(bundle.encoder_path.read_bytes()))


def _message_bytes(system: str, acquisition: Acquisition, bundle: Bundle) -> int:
    """Return the largest size of one device's message, in bytes."""
    if is_epic(system):
        return bundle.coding.latent + 100
    part = acquisition.n_sources * acquisition.n_time * acquisition.max_device_receivers
    cells = acquisition.n_depth * acquisition.n_width
    # Upper bound for compressed samples: a tenth of the float32 samples.
    return {
        "raw": 4 * part,
        "raw-compressed": part // 2,
        "split": 2 * part,
        "federated": 2 * cells,
    }[system]


def _described(profile: LinkProfile) -> dict:
    described = asdict(profile)
    described["up_bytes_per_s"] = profile.rate_bytes_per_s(profile.up_bytes_per_s)
    return described
