"""A training run into its folder: what was asked, measured before, trained, and left behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import numpy as np

from models.data.companding import choose_companding
from models.data.gathers import ThinnedSet, load_thinned, survey_of
from models.data.simulated import WATCH_EVERY, Simulated
from models.errors import TrainingError
from models.evaluation.scores import score
from models.networks.encoder import PRESETS, EncoderConfig, encoder_preset
from models.networks.federated import Rounds
from models.networks.fusion import DECODERS, DecoderConfig
from models.networks.inversionnet import LAYOUTS
from models.training.learning import begin, feed_run, on_device, set_to_learn, spread_over_devices
from models.training.run_config import RunConfig, build, computing_in, read_config
from models.training.training import Budget, has_checkpoint, predict, train, write_json
from models.training.warm_start import Origin, read_central, read_origin
from physics.acquisition import Acquisition
from physics.files.openfwi_files import find_pairs
from physics.normalise import log_transform

KINDS = ("epic", *LAYOUTS, "federated")
# What an EPIC run may be trained without, to see what it is worth.
PARTS = ("attention", "positions", "drop-out")
# Of the samples that are kept from training; results are reported on other seeds altogether.
WATCH_MOST = 300
COMPANDING_GATHERS = 64
# On so many the batch normalisation of a released encoder is measured anew.
ORIGIN_GATHERS = 200


def start_run(
    kind: str,
    data: list[Path],
    run: Path,
    budget: Budget,
    thin: int = 10,
    encoder: str = "small",
    start_from: Path | None = None,
    without: str | None = None,
    acquisition: Acquisition | None = None,
    on_progress: Callable[[float, dict], None] = lambda share, figures: None,
    on_load: Callable[[int, int], None] = lambda done, total: None,
    decoder: str = "small",
    source: Callable[[], Simulated] | None = None,
) -> dict:
    """Train ``kind`` (one of ``KINDS``) on OpenFWI folders ``data`` into the folder ``run``.

    Starts, or resumes when ``run`` holds a checkpoint (the configuration must then be the same but for
    its budget and data, which may grow). ``encoder`` names a preset of ``models.networks.encoder``, ``decoder`` one of
    ``models.networks.fusion``. ``start_from`` is an earlier run or, of EPIC, a released model, with whose
    weights and scaling of the input a new run begins (see ``models.training.warm_start``). ``without`` names
    one of ``PARTS`` to leave out of an EPIC run. ``source`` makes the samples rather than reading them
    (``models.data.simulated``): they go on with the one folder of ``data``. ``acquisition`` is by default that
    of the run being resumed, else what ``data`` were made for. Returns the metrics of the watched samples.
    Raises ``TrainingError``, ``DataError``.
    """
    if kind not in KINDS:
        raise TrainingError(f"train: expected one of {', '.join(KINDS)}; got {kind!r}")
    if encoder not in PRESETS:
        raise TrainingError(f"train: expected an encoder of {', '.join(PRESETS)}; got {encoder!r}")
    if start_from is not None and kind == "federated":
        raise TrainingError("train: a federated run begins with weights of its own; leave out --start-from")
    if decoder not in DECODERS:
        raise TrainingError(f"train: expected a decoder of {', '.join(DECODERS)}; got {decoder!r}")
    if source and (kind == "federated" or without is not None or len(data) != 1):
        raise TrainingError(
            "train: --simulate trains epic or a centralised network on the sequence of one --data; leave it out"
        )
    if budget.quantised and (start_from is None or kind != "epic"):
        raise TrainingError(
            "train: quantised training refines a trained EPIC run, whose batch normalisation it keeps; name it with "
            "--start-from"
        )
    if budget.ordered and (kind != "epic" or without == "attention"):
        raise TrainingError(
            "train: only an EPIC run with attention has latents to order; leave out --ordered"
        )
    if without is not None and (kind != "epic" or without not in PARTS):
        raise TrainingError(
            f"train: an EPIC run may be without one of {', '.join(PARTS)}; got {kind} without {without!r}"
        )
    acquisition = acquisition or _survey_of(run, data)
    origin, central = None, None
    if start_from is not None and not has_checkpoint(run):
        if kind == "epic":
            origin = read_origin(start_from)
        else:
            central = read_central(start_from, kind)
    simulated = source() if source else None
    if simulated:
        thinned = simulated.watched
        watched, training = np.arange(len(thinned)), np.arange(simulated.trained_on)
    else:
        thinned = load_thinned(data, acquisition, thin, on_load)
        watched, training = split_watched(len(thinned))
    run.mkdir(parents=True, exist_ok=True)
    known, start = central or simulated, central or origin
    log_range = known.log_range if known else lambda: _log_range(thinned, training)
    config = configure(
        kind,
        data,
        run,
        budget,
        thin,
        encoder,
        decoder,
        without,
        origin,
        acquisition,
        log_range,
        simulated.count if simulated else None,
        start.trained_on if start else [],
    )
    write_json(run / "config.json", asdict(config))
    keras.utils.set_random_seed(budget.seed)
    if not simulated:
        spread_over_devices(budget.batch)
    with computing_in(budget.precision):
        network, parts = build(config, acquisition, budget.quantised, budget.ordered)
    batches = feed_run(config, thinned, simulated, budget.ordered)
    if origin is not None:
        some = watched if simulated else training
        begin(
            origin,
            parts,
            batches.plain(some[:: max(1, len(some) // ORIGIN_GATHERS)][:ORIGIN_GATHERS]),
            budget,
        )
    if central:
        network.set_weights(central.weights)
    set_to_learn(network, kind, budget)
    if simulated:
        # Compiled before the clock of the budget runs.
        predict(network, batches, watched[:1])
        turns = on_device(config, network, budget, tuple(array.shape for array in simulated.shards[0]))
        turns.compile()
        turns.fill(simulated, batches)
        progress = train(network, turns, watched, training, budget, run, on_progress, turns.learn, turns.turn)
    else:
        learn = Rounds(network, parts["local"]) if kind == "federated" else None
        progress = train(network, batches, watched, training, budget, run, on_progress, learn)
    weights = network.get_weights()
    network, parts = build(config, acquisition)
    batches = feed_run(config, thinned, simulated)
    network.set_weights(weights)
    for name, part in parts.items():
        temporary = run / f"{name}.new.keras"
        part.save(temporary)
        temporary.replace(run / f"{name}.keras")
    metrics = {
        "step": progress.step,
        "epoch": progress.epoch,
        "elapsed_s": progress.elapsed_s,
        "core_s": progress.core_s,
        "families": score(predict(network, batches, watched)[..., 0], thinned, watched),
    }
    write_json(run / "metrics.json", metrics)
    from models.training.curves import draw_curves

    draw_curves(run)
    return metrics


def _survey_of(run: Path, data: list[Path]) -> Acquisition:
    if (run / "config.json").exists():
        return Acquisition.from_dict(read_config(run).acquisition)
    found = [survey for folder in data if (survey := survey_of(folder)) is not None]
    # Data without a manifest are the benchmark's own; load_thinned refuses those of different surveys.
    return found[0] if found else Acquisition.openfwi()


def split_watched(n: int) -> tuple[np.ndarray, np.ndarray]:
    """``(watched, training)`` indices of ``n`` samples."""
    indices = np.arange(n)
    is_watched = indices % WATCH_EVERY == WATCH_EVERY - 1
    watched = indices[is_watched]
    return watched[:: max(1, -(-len(watched) // WATCH_MOST))], indices[~is_watched]


def configure(
    kind: str,
    data: list[Path],
    run: Path,
    budget: Budget,
    thin: int,
    encoder: str,
    decoder: str,
    without: str | None,
    origin: Origin | None,
    acquisition: Acquisition,
    log_range: Callable[[], list[float]],
    simulated: int | None,
    before: list[dict] | None = None,
) -> RunConfig:
    """The run's configuration: measured afresh, or that of the run being resumed.

    ``before`` is what the networks that a new run begins with were trained on (``RunConfig.stages``).
    """
    found = read_config(run) if (run / "config.json").exists() else None
    if found and (found.kind, found.thin, found.acquisition) != (kind, thin, acquisition.to_dict()):
        raise TrainingError(
            f"{run}: holds a run of {found.kind} with another survey or thinning; choose an empty folder"
        )
    for name in ("quantised", "ordered"):
        wanted = getattr(budget, name)
        if found and found.budget.get(name, False) != wanted:
            raise TrainingError(
                f"{run}: holds a run {'without' if wanted else 'with'} --{name}; choose an empty folder"
            )
    if found and (theirs := found.budget.get("optimiser", "adamw")) != budget.optimiser:
        raise TrainingError(
            f"{run}: holds a run that {theirs} optimises; go on with --optimiser {theirs}, or choose an empty folder"
        )
    if found and found.without != without:
        raise TrainingError(
            f"{run}: holds a run without {found.without or 'nothing'}; choose an empty folder"
        )
    own = {"data": [str(folder) for folder in data], "simulated": simulated}
    common: dict[str, Any] = {
        **own,
        "kind": kind,
        "acquisition": acquisition.to_dict(),
        "budget": asdict(budget),
        "thin": thin,
        "without": without,
        "before": [stage for stage in (found.stages() if found else before or []) if stage != own],
    }
    if kind in LAYOUTS:
        measured = found.log_range if found else log_range()
        return RunConfig(**common, companding=None, encoder=None, decoder=None, log_range=measured)
    if found:
        companding = found.companding
    elif origin:
        companding = origin.companding.to_dict()
    else:
        companding = _measure_companding(data, acquisition, thin, run)
    if companding and companding["thin"] != thin:
        raise TrainingError(f"train: begins with a network for --thin {companding['thin']}, not {thin}")
    if kind == "federated":
        return RunConfig(**common, companding=companding, encoder=None, decoder=None, log_range=None)
    shape = encoder_preset(encoder, acquisition, thin)
    if found and EncoderConfig.from_dict(found.encoder or {}) != shape:
        raise TrainingError(f"{run}: holds a run of another encoder than {encoder!r}; choose an empty folder")
    fusion = DecoderConfig(
        acquisition.n_devices,
        shape.latent,
        acquisition.n_depth,
        acquisition.n_width,
        attention=without != "attention",
        positions=without != "positions",
        **DECODERS[decoder],
    )
    if found and DecoderConfig(**(found.decoder or {})) != fusion:
        raise TrainingError(f"{run}: holds a run of another decoder than {decoder!r}; choose an empty folder")
    return RunConfig(
        **common, companding=companding, encoder=asdict(shape), decoder=asdict(fusion), log_range=None
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
