"""A training run from its folder: what was asked (``config.json``), the networks, finishing touches."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from firmware_py.compand import Companding
from models.batches import EpicBatches, InversionNetBatches
from models.companding import choose_companding
from models.data import ThinnedSet, load_thinned
from models.encoder import EncoderConfig
from models.fusion import DecoderConfig
from models.inversionnet import build_inversionnet
from models.network import build_network, map_loss, map_mae
from models.training import Budget, TrainingError, load_checkpoint, predict, train, write_json
from physics.acquisition import Acquisition
from physics.metrics import mae, rmse, ssim
from physics.normalise import log_transform
from physics.openfwi_files import find_pairs

KINDS = ("epic", "inversionnet")
# Every 50th sample is kept from training to watch it; results are reported on other seeds altogether.
WATCH_EVERY = 50
WATCH_MOST = 300
COMPANDING_GATHERS = 64


@dataclass(frozen=True)
class RunConfig:
    """What a run folder's ``config.json`` holds."""

    kind: str
    data: list[str]
    acquisition: dict
    budget: dict
    thin: int
    companding: dict | None
    encoder: dict | None
    decoder: dict | None
    log_range: list[float] | None


def start_run(
    kind: str,
    data: list[Path],
    run: Path,
    budget: Budget,
    thin: int = 10,
    latent: int = 128,
    start_from: Path | None = None,
    acquisition: Acquisition | None = None,
    on_progress: Callable[[float, dict], None] = lambda share, figures: None,
    on_load: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """Train ``kind`` ("epic" or "inversionnet") on OpenFWI folders ``data`` into the folder ``run``.

    Starts, or resumes when ``run`` holds a checkpoint (the configuration must then be the same but for
    its budget and data, which may grow). ``start_from`` is an earlier run whose weights a new run begins
    with. Returns the metrics of the watched samples. Raises
    ``TrainingError``, ``DataError``.
    """
    if kind not in KINDS:
        raise TrainingError(f"train: expected one of {', '.join(KINDS)}; got {kind!r}")
    acquisition = acquisition or Acquisition.openfwi()
    run.mkdir(parents=True, exist_ok=True)
    thinned = load_thinned(data, acquisition, thin, on_load)
    watched, training = split_watched(len(thinned))
    config = _configure(kind, data, run, budget, thin, latent, acquisition, thinned, training)
    write_json(run / "config.json", asdict(config))
    network, batches, parts = assemble(config, thinned, acquisition)
    if start_from is not None:
        network.set_weights(load_checkpoint(start_from).get_weights())
    network.compile(
        keras.optimizers.AdamW(budget.learning_rate, weight_decay=budget.weight_decay, clipnorm=1.0),
        loss=map_loss if kind == "epic" else "mae",
        metrics=[map_mae] if kind == "epic" else [],
        jit_compile=keras.backend.backend() == "jax",
    )
    progress = train(network, batches, watched, training, budget, run, on_progress)
    for name, part in parts.items():
        temporary = run / f"{name}.new.keras"
        part.save(temporary)
        temporary.replace(run / f"{name}.keras")
    metrics = {
        "step": progress.step,
        "epoch": progress.epoch,
        "elapsed_s": progress.elapsed_s,
        "families": score(predict(network, batches, watched)[..., 0], thinned, watched),
    }
    write_json(run / "metrics.json", metrics)
    from models.curves import draw_curves

    draw_curves(run)
    return metrics


def split_watched(n: int) -> tuple[np.ndarray, np.ndarray]:
    """``(watched, training)`` indices of ``n`` samples."""
    indices = np.arange(n)
    is_watched = indices % WATCH_EVERY == WATCH_EVERY - 1
    watched = indices[is_watched]
    return watched[:: max(1, -(-len(watched) // WATCH_MOST))], indices[~is_watched]


def _configure(
    kind: str,
    data: list[Path],
    run: Path,
    budget: Budget,
    thin: int,
    latent: int,
    acquisition: Acquisition,
    thinned: ThinnedSet,
    training: np.ndarray,
) -> RunConfig:
    """The run's configuration: measured afresh, or that of the run being resumed."""
    found = read_config(run) if (run / "config.json").exists() else None
    if found and (found.kind, found.thin, found.acquisition) != (kind, thin, acquisition.to_dict()):
        raise TrainingError(
            f"{run}: holds a run of {found.kind} with another survey or thinning; choose an empty folder"
        )
    if found and found.encoder and found.encoder["latent"] != latent:
        raise TrainingError(f"{run}: holds a run with a latent of {found.encoder['latent']}, not {latent}")
    common: dict[str, Any] = {
        "kind": kind,
        "data": [str(folder) for folder in data],
        "acquisition": acquisition.to_dict(),
        "budget": asdict(budget),
        "thin": thin,
    }
    if kind == "inversionnet":
        log_range = found.log_range if found else _log_range(thinned, training)
        return RunConfig(**common, companding=None, encoder=None, decoder=None, log_range=log_range)
    companding = found.companding if found else _measure_companding(data, acquisition, thin, run)
    encoder = EncoderConfig(
        n_time=acquisition.n_time // thin,
        n_receivers=acquisition.max_device_receivers,
        n_sources=acquisition.n_sources,
        latent=latent,
    )
    decoder = DecoderConfig(acquisition.n_devices, latent, acquisition.n_depth, acquisition.n_width)
    return RunConfig(
        **common, companding=companding, encoder=asdict(encoder), decoder=asdict(decoder), log_range=None
    )


def _measure_companding(data: list[Path], acquisition: Acquisition, thin: int, run: Path) -> dict:
    """Companding for the training set, by measurement on gathers spread over all its files."""
    pairs = [pair for folder in data for pair in find_pairs(folder, acquisition)]
    each = max(1, COMPANDING_GATHERS // len(pairs))
    gathers = np.concatenate([np.asarray(pair.gathers()[:each], np.float32) for pair in pairs])
    companding, report = choose_companding(gathers, thin)
    write_json(run / "companding.json", report)
    return companding.to_dict()


def _log_range(thinned: ThinnedSet, training: np.ndarray) -> list[float]:
    values = thinned.gathers[training[:: max(1, len(training) // 2000)]].astype(np.float32)
    transformed = log_transform(values)
    return [float(transformed.min()), float(transformed.max())]


def read_config(run: Path) -> RunConfig:
    """The configuration of a run folder. Raises ``TrainingError`` when it has none."""
    path = run / "config.json"
    if not path.exists():
        raise TrainingError(f"{path}: not found; expected a run folder as `epic train` writes it")
    return RunConfig(**json.loads(path.read_text()))


def assemble(
    config: RunConfig, thinned: ThinnedSet, acquisition: Acquisition
) -> tuple[keras.Model, Any, dict[str, keras.Model]]:
    """``(network, batches, parts to save by name)`` of a run's configuration."""
    if config.kind == "inversionnet":
        network = build_inversionnet(acquisition)
        pairs = [pair for folder in config.data for pair in find_pairs(Path(folder), acquisition)]
        low, high = config.log_range or (0.0, 1.0)
        return network, InversionNetBatches(pairs, thinned, (low, high)), {"inversionnet": network}
    assert config.encoder and config.decoder and config.companding
    encoder_values = {**config.encoder, "blocks": tuple(tuple(block) for block in config.encoder["blocks"])}
    network, encoder, decoder = build_network(
        acquisition, EncoderConfig(**encoder_values), DecoderConfig(**config.decoder)
    )
    batches = EpicBatches(thinned, Companding.from_dict(config.companding))
    return network, batches, {"encoder": encoder, "decoder": decoder}


def score(drawn: np.ndarray, thinned: ThinnedSet, indices: np.ndarray) -> dict[str, dict[str, float]]:
    """Per family and over all: normalised ``mae``, ``rmse``, ``ssim``, ``mae_mps``, sample count.

    ``mean_map_mae`` is the error of the mean of the family's true maps, drawn for every sample: what can be
    had without looking at any recording.
    """
    truth, families = thinned.maps[indices], thinned.families[indices]
    a = thinned.acquisition
    half_range_mps = (a.velocity_max_mps - a.velocity_min_mps) / 2
    table = {}
    for family in [*sorted(set(families)), "all"]:
        chosen = np.ones(len(indices), bool) if family == "all" else families == family
        p, t = np.clip(drawn[chosen], -1.0, 1.0), truth[chosen]
        table[str(family)] = {
            "count": int(chosen.sum()),
            "mae": float(mae(p, t)),
            "mae_mps": float(mae(p, t)) * half_range_mps,
            "rmse": float(rmse(p, t)),
            "ssim": float(ssim(p, t)),
            "mean_map_mae": float(np.abs(t - t.mean(axis=0)).mean()),
        }
    return table
