"""Uncertainty and out-of-distribution (OOD) score of a released model on test data.

    python benchmarks/accuracy/trust.py --data held-out [--model models/zoo/epic-small-128] [--picture trust.png]
    further: [--json]

Coverage: the share of cells whose error is within the interval that the uncertainty b gives for a probability p, -b
ln(1 - p) of a Laplace distribution. OOD cases are made of every fifth test sample: noise alone, noise added, twice the
source, another wavelet, a body of salt, each modelled with the benchmark's scheme. AUC is the probability that an OOD
gather scores above a usual one; caught is the share of OOD gathers above the limit, as are about 1 % of the usual ones.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from convert import litert
from firmware_py.inference.bundle import load_bundle
from firmware_py.inference.companding import quantise, thin_samples
from firmware_py.protocol.rate import Rate, pack
from models.data.gathers import DecimatedSet, device_parts, load_decimated
from models.inversion.decoder import load_decoder
from physics.acquisition import Acquisition
from physics.modelling import model_gathers
from physics.normalise import denormalise_velocity, normalise_velocity

PROBABILITIES = (0.25, 0.5, 0.68, 0.8, 0.9, 0.95)
EVERY = 5
SALT_MPS = 4450.0


class Released:
    """A released model on this machine: decimated gathers in, latents, maps and scores out."""

    def __init__(self, folder: Path) -> None:
        self.bundle = load_bundle(folder / "bundle")
        self.decoder = load_decoder(folder / "decoder")
        self.thin = self.bundle.companding.thin

    def latents(self, gathers: np.ndarray) -> np.ndarray:
        parts = device_parts(gathers, self.decoder.acquisition, self.bundle.companding)
        codes = quantise(
            parts.reshape(-1, *parts.shape[2:]), self.bundle.input.scale, self.bundle.input.zero_point
        )
        return litert.run(self.bundle.encoder_path.read_bytes(), codes).reshape(*parts.shape[:2], -1)

    def scores(self, latents: np.ndarray, rate: Rate | None = None) -> np.ndarray:
        """Return the OOD scores of int8 latents ``(n, n_devices, latent)``, sent whole or at ``rate``."""
        n_devices, coding = latents.shape[1], self.decoder.coding
        rate = rate or coding.rates[0]
        received = np.array([[coding.unpack(pack(one, rate)) for one in event] for event in latents])
        everyone = np.ones(n_devices, bool)
        found = [self.decoder.ood_score(one, everyone, [rate] * n_devices) for one in received]
        return np.array([score for score, _ in filter(None, found)])

    def maps(self, latents: np.ndarray, present: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return velocity and uncertainty ``(n, nz, nx)``, normalised, from all devices or from those ``present``."""
        a = self.decoder.acquisition
        received = np.ones(latents.shape[:2], bool) if present is None else present
        velocity_mps, uncertainty_mps = self.decoder.decode_batch(latents, received)
        half_range_mps = (a.velocity_max_mps - a.velocity_min_mps) / 2
        return normalise_velocity(velocity_mps[:, 0], a), uncertainty_mps[:, 0] / half_range_mps

    @property
    def limit(self) -> float:
        """Limit of the OOD scores. Exits if the model has none."""
        if self.decoder.ood_statistics is None:
            raise SystemExit(f"{self.decoder.folder}: no familiarity.npz; convert the run again")
        return self.decoder.ood_statistics.limit


def strange_gathers(held_out: DecimatedSet, thin: int) -> dict[str, np.ndarray]:
    """Return decimated gathers ``(n, T', R, S)`` by OOD case."""
    rng = np.random.default_rng(0)
    a = held_out.acquisition
    usual = held_out.gathers[::EVERY].astype(np.float32)
    maps = denormalise_velocity(held_out.maps[::EVERY], a).astype(np.float32)
    level = np.sqrt(np.mean(np.square(usual)))

    def modelled(velocity_mps: np.ndarray, acquisition: Acquisition) -> np.ndarray:
        gathers = model_gathers(velocity_mps[:, None], acquisition)
        return thin_samples(gathers, thin, axis=2).transpose(0, 2, 3, 1)

    def noise() -> np.ndarray:
        return rng.standard_normal(usual.shape, np.float32)

    return {
        "noise alone": level * noise(),
        "noise of 4 % of the rms added": usual + 0.04 * level * noise(),
        "noise of 20 % of the rms added": usual + 0.2 * level * noise(),
        "twice the source": 2 * usual,
        "10 Hz wavelet": modelled(maps, replace(a, peak_frequency_hz=10.0)),
        "20 Hz wavelet": modelled(maps, replace(a, peak_frequency_hz=20.0)),
        "a body of salt": modelled(with_salt(maps, rng), a),
    }


def with_salt(velocity_mps: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Put an ellipse of ``SALT_MPS`` into the middle of each map ``(n, nz, nx)``."""
    changed = velocity_mps.copy()
    nz, nx = changed.shape[1:]
    z, x = np.mgrid[:nz, :nx]
    for one in changed:
        centre_z, centre_x = rng.uniform(0.4, 0.65) * nz, rng.uniform(0.3, 0.7) * nx
        half_z, half_x = rng.uniform(0.1, 0.2) * nz, rng.uniform(0.1, 0.25) * nx
        one[((z - centre_z) / half_z) ** 2 + ((x - centre_x) / half_x) ** 2 < 1] = SALT_MPS
    return changed


def coverage(errors: np.ndarray, scales: np.ndarray) -> dict[float, float]:
    return {p: float((errors <= -scales * np.log(1 - p)).mean()) for p in PROBABILITIES}


def roc(usual: np.ndarray, strange: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return false-alarm and detection rates at every threshold, and the area under the curve."""
    thresholds = np.concatenate([[np.inf], np.sort(np.concatenate([usual, strange]))[::-1], [-np.inf]])
    false = np.array([(usual >= t).mean() for t in thresholds])
    caught = np.array([(strange >= t).mean() for t in thresholds])
    return false, caught, float(np.trapezoid(caught, false))


def at_rate(model: Released, rate: Rate, latents: np.ndarray, strange: dict[str, np.ndarray]) -> dict:
    """Return false alarms and AUC with all devices sending at ``rate``."""
    usual = model.scores(latents, rate)
    return {
        "false_alarms": float((usual > model.limit).mean()),
        "auc": {name: roc(usual, model.scores(one, rate))[2] for name, one in strange.items()},
    }


def benchmark(model: Released, held_out: DecimatedSet) -> dict:
    latents = model.latents(held_out.gathers)
    velocity, scales = model.maps(latents)
    errors = np.abs(velocity - held_out.maps)
    rows = {
        "all": np.ones(len(errors), bool),
        **{f: held_out.families == f for f in sorted(set(held_out.families))},
    }
    ranks = [np.argsort(np.argsort(values.mean(axis=(1, 2)))) for values in (errors, scales)]
    limit = model.limit
    usual = model.scores(latents)
    strange = {
        name: model.latents(gathers) for name, gathers in strange_gathers(held_out, model.thin).items()
    }
    scores = {name: model.scores(one) for name, one in strange.items()}
    unsure = scales.mean(axis=(1, 2))
    return {
        "samples": len(errors),
        "mae": float(errors.mean()),
        "mean_uncertainty": float(scales.mean()),
        "rank_correlation": float(np.corrcoef(*ranks)[0, 1]),
        "coverage": {name: coverage(errors[chosen], scales[chosen]) for name, chosen in rows.items()},
        "limit": limit,
        "false_alarms": float((usual > limit).mean()),
        "at_rates": {
            rate.payload_bytes: at_rate(model, rate, latents, strange) for rate in model.decoder.coding.rates
        },
        "strange": {
            name: {
                "auc": roc(usual, scores[name])[2],
                "caught": float((scores[name] > limit).mean()),
                "auc_of_uncertainty": roc(unsure, model.maps(one)[1].mean(axis=(1, 2)))[2],
            }
            for name, one in strange.items()
        },
        "_curves": {name: roc(usual, one)[:2] for name, one in scores.items()},
    }


def draw(found: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    left.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for name, row in found["coverage"].items():
        style = {"color": "black", "linewidth": 2.2, "zorder": 3} if name == "all" else {"linewidth": 0.9}
        left.plot(list(row), list(row.values()), marker="o", markersize=3, label=name, **style)
    left.set(
        xlabel="probability asked for",
        ylabel="share of cells within",
        title="Uncertainty",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    left.legend(fontsize=7, loc="upper left")
    right.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for name, (false, caught) in found["_curves"].items():
        right.plot(false, caught, label=f"{name}: {found['strange'][name]['auc']:.2f}")
    right.set(xlabel="false alarms", ylabel="caught", title="OOD gathers (area under the curve)")
    right.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--model", type=Path, default=Path("models/zoo/epic-small-128"))
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    model = Released(given.model)
    found = benchmark(model, load_decimated(given.data, model.decoder.acquisition, model.thin))
    if given.picture:
        draw(found, given.picture)
    del found["_curves"]
    if given.json:
        print(json.dumps(found))
        return
    for name, row in found["coverage"].items():
        print(f"{name:<14}" + "  ".join(f"{p:.0%}: {share:.1%}" for p, share in row.items()))
    for name, row in found["strange"].items():
        print(
            f"{name:<32} AUC {row['auc']:.2f}, caught {row['caught']:.0%}; of the map's "
            f"uncertainty {row['auc_of_uncertainty']:.2f}"
        )
    for size, row in found["at_rates"].items():
        aucs = ", ".join(f"{name} {auc:.2f}" for name, auc in row["auc"].items())
        print(f"{size} bytes a latent: {row['false_alarms']:.1%} of usual above the limit; AUC of {aucs}")
    print(
        f"{found['samples']} samples: uncertainty {found['mean_uncertainty']:.4f} for an MAE of {found['mae']:.4f}, "
        f"rank correlation of a map's with its error {found['rank_correlation']:.2f}; "
        f"{found['coverage']['all'][0.9]:.1%} of "
        f"cells within the 90 % interval; {found['false_alarms']:.1%} of usual gathers above the limit"
    )


if __name__ == "__main__":
    main()
