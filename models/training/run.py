"""Run a training into its folder: configuration, measurement, training, results."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from models.data.batches import TrainingData
from models.data.gathers import DecimatedSet, load_decimated, survey_of
from models.data.held_out import drawn_samples
from models.data.simulated import VALIDATION_EVERY, Simulated
from models.errors import TrainingError
from models.evaluation.prediction import predict
from models.evaluation.scores import score
from models.networks.encoder import PRESETS
from models.networks.fusion import DECODERS
from models.recipes import recipe_of
from models.recipes.base import Recipe
from models.recipes.epic import begin
from models.training.learning import on_device, spread_over_devices
from models.training.request import Setting, TrainRequest
from models.training.run_config import RunConfig, computing_in, read_config, write_json
from models.training.training import Steps, has_checkpoint, train
from models.training.warm_start import CentralOrigin, Origin, read_central, read_origin
from physics.acquisition import Acquisition
from physics.files.atomic import atomic_write
from physics.normalise import log_transform

# Size of the validation set, taken from the samples kept out of training. Results are reported on other seeds.
VALIDATION_MOST = 300
# Samples for measuring the batch normalisation of a released encoder again.
ORIGIN_GATHERS = 200


def start_run(
    request: TrainRequest,
    on_progress: Callable[[float, dict], None] = lambda share, figures: None,
    on_load: Callable[[int, int], None] = lambda done, total: None,
    on_report: Callable[[dict], None] = lambda row: None,
) -> dict:
    """Train a network into its run folder, or resume it there.

    Args:
        on_progress: Called about once a second with the share of the budget spent and figures.
        on_load: Called with the number of files loaded and of all files.
        on_report: Called with each row of ``history.jsonl``.

    Returns:
        Metrics of the validation set.

    Raises:
        TrainingError: The request is impossible or does not match the run in the folder, or training diverged.
        DataError: The data cannot be read.
    """
    recipe, acquisition = _check(request)
    origin, central = _read_start(request)
    samples = _load(request, acquisition, on_load)
    request.run.mkdir(parents=True, exist_ok=True)
    known, start = central or samples.simulated, central or origin
    config = configure(
        request,
        Setting(
            acquisition,
            log_range=known.log_range if known else samples.log_range,
            origin=origin,
            simulated=samples.simulated.count if samples.simulated else None,
            before=start.trained_on if start else [],
        ),
    )
    write_json(request.run / "config.json", asdict(config))
    network, parts = _build(request, config, samples)
    batches = samples.make_batches(recipe, config, request.budget.ordered)
    if origin is not None:
        some = samples.validation if samples.simulated else samples.training
        some = some[:: max(1, len(some) // ORIGIN_GATHERS)][:ORIGIN_GATHERS]
        begin(origin, parts, batches.plain(some), request.budget)
    if central:
        network.set_weights(central.weights)
    recipe.compile_model(network, request.budget)
    with _reporting(request, on_report) as report:
        batches, steps = _steps(request, config, samples, batches, network, parts)
        data = TrainingData(batches, samples.training, samples.validation)
        progress, best = train(network, data, request.budget, request.run, steps, on_progress, report)
    # The saved networks are the plain ones, without rounding or rates in the loop.
    weights = network.get_weights()
    network, parts = recipe.build(config, acquisition)
    network.set_weights(weights)
    _save_parts(parts, request.run)
    plain = samples.make_batches(recipe, config, nested=False)
    predicted = predict(network, plain, samples.validation)[..., 0]
    metrics = {
        **vars(progress),
        "best": best.to_dict() if best else None,
        "families": score(predicted, samples.decimated, samples.validation),
    }
    write_json(request.run / "metrics.json", metrics)
    return metrics


def _check(request: TrainRequest) -> tuple[Recipe, Acquisition]:
    """Refuse everything that can be refused before data are loaded; return the recipe and the survey."""
    recipe = recipe_of(request.kind)
    _check_presets(request)
    recipe.validate(request)
    acquisition = request.acquisition or _survey_of(request.run, request.data)
    if not 1 <= request.decimation <= acquisition.n_time:
        raise TrainingError(
            f"train: expected a decimation of 1 to the survey's {acquisition.n_time} samples, got "
            f"{request.decimation}; correct --decimation"
        )
    recipe.plan(request, acquisition, _read_found(request, acquisition))
    return recipe, acquisition


@dataclass(frozen=True)
class _Samples:
    """Samples of a run: ``decimated``, of which ``validation`` and ``training`` are indices.

    With ``simulated``, only the validation set is decimated and on the host.
    """

    decimated: DecimatedSet
    validation: np.ndarray
    training: np.ndarray
    simulated: Simulated | None = None

    def make_batches(self, recipe: Recipe, config: RunConfig, nested: bool) -> Any:
        if self.simulated:
            return recipe.simulated_batches(config, self.simulated, nested)
        return recipe.make_batches(config, self.decimated, nested)

    def log_range(self) -> list[float]:
        """Return the range of log-transformed training gathers."""
        chosen = self.training[:: max(1, len(self.training) // 2000)]
        transformed = log_transform(self.decimated.gathers[chosen].astype(np.float32))
        return [float(transformed.min()), float(transformed.max())]


def _load(request: TrainRequest, acquisition: Acquisition, on_load: Callable[[int, int], None]) -> _Samples:
    if request.source:
        simulated = request.source()
        validation = np.arange(len(simulated.validation))
        return _Samples(simulated.validation, validation, np.arange(simulated.trained_on), simulated)
    decimated = load_decimated(request.data, acquisition, request.decimation, on_load)
    validation, training = split_validation(len(decimated))
    if not len(validation):
        raise TrainingError(
            f"train: expected at least {VALIDATION_EVERY} samples, of which one is for validation, got "
            f"{len(decimated)}; add data"
        )
    return _Samples(decimated, validation, training)


def _build(
    request: TrainRequest, config: RunConfig, samples: _Samples
) -> tuple[keras.Model, dict[str, keras.Model]]:
    """Build the network to train with its initial weights, and its parts."""
    budget = request.budget
    keras.utils.set_random_seed(budget.seed)
    if not samples.simulated:
        spread_over_devices(budget.batch)
    with computing_in(budget.precision):
        return recipe_of(request.kind).build(
            config, Acquisition.from_dict(config.acquisition), budget.quantised, budget.ordered
        )


def _steps(
    request: TrainRequest,
    config: RunConfig,
    samples: _Samples,
    batches: Any,
    network: keras.Model,
    parts: dict[str, keras.Model],
) -> tuple[Any, Steps]:
    """Return the batches and steps of a training: on the host, or on the accelerator."""
    simulated = samples.simulated
    if simulated is None:
        return batches, Steps(recipe_of(request.kind).make_learner(network, parts))
    shapes = tuple(array.shape for array in simulated.shards[0])
    turns = on_device(config, network, request.budget, shapes)
    turns.compile()
    turns.fill(simulated, batches)
    return turns, Steps(turns.learn, turns.turn)


@contextlib.contextmanager
def _reporting(request: TrainRequest, on_report: Callable[[dict], None]) -> Iterator[Callable[[dict], None]]:
    """Yield a function that takes the rows of the history; draw the curves at the end, also of a stopped run."""
    from models.training.curves import draw_curves

    with contextlib.ExitStack() as stack:
        takers = [on_report]
        if request.tensorboard:
            from models.training.tensorboard import EventWriter

            takers.append(stack.enter_context(EventWriter(request.run / "tensorboard")).add)
        stack.callback(draw_curves, request.run)

        def report(row: dict) -> None:
            for take in takers:
                take(row)

        yield report


def _check_presets(request: TrainRequest) -> None:
    for name, value, known in (("encoder", request.encoder, PRESETS), ("decoder", request.decoder, DECODERS)):
        if value is not None and value not in known:
            raise TrainingError(
                f"train: expected {'an' if name == 'encoder' else 'a'} {name} of {', '.join(known)}; got {value!r}"
            )


def _read_start(request: TrainRequest) -> tuple[Origin | None, CentralOrigin | None]:
    """Read the weights that a new run (EPIC or centralised) starts from."""
    if request.start_from is None or has_checkpoint(request.run):
        return None, None
    if request.kind == "epic":
        return read_origin(request.start_from), None
    return None, read_central(request.start_from, request.kind)


def _save_parts(parts: dict[str, keras.Model], run: Path) -> None:
    for name, part in parts.items():
        with atomic_write(run / f"{name}.keras", suffix=".keras") as temporary:
            part.save(temporary)


def _survey_of(run: Path, data: list[Path]) -> Acquisition:
    if has_checkpoint(run):
        return Acquisition.from_dict(read_config(run).acquisition)
    found = [survey for folder in data if (survey := survey_of(folder)) is not None]
    # Data without a manifest are the benchmark's own. load_decimated rejects a mix of surveys.
    return found[0] if found else Acquisition.openfwi()


def split_validation(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Split ``n`` samples into indices ``(validation set, training set)``."""
    indices = np.arange(n)
    kept_out = indices % VALIDATION_EVERY == VALIDATION_EVERY - 1
    validation = indices[kept_out]
    return validation[:: max(1, -(-len(validation) // VALIDATION_MOST))], indices[~kept_out]


def configure(request: TrainRequest, setting: Setting) -> RunConfig:
    """Return the run's configuration: newly measured, or that of the run being resumed.

    Raises:
        TrainingError: The folder holds a run of another configuration.
    """
    recipe, budget = recipe_of(request.kind), request.budget
    found = _read_found(request, setting.acquisition)
    networks: dict[str, Any] = recipe.plan(request, setting.acquisition, found)
    own: dict[str, Any] = {
        "data": [str(folder.resolve()) for folder in request.data],
        "simulated": setting.simulated,
        "drawn": drawn_samples(request.data, setting.simulated),
    }
    stages = found.stages() if found else setting.before
    return RunConfig(
        **own,
        kind=request.kind,
        acquisition=setting.acquisition.to_dict(),
        budget=asdict(budget),
        thin=request.decimation,
        without=request.ablate,
        before=[stage for stage in stages if stage != own],
        **networks,
        **recipe.describe(request, setting, found),
    )


def _read_found(request: TrainRequest, acquisition: Acquisition) -> RunConfig | None:
    """Read the configuration of the run to resume; None without a checkpoint to resume from.

    Raises:
        TrainingError: It is damaged, or of another kind of run than the request.
    """
    if not (request.run / "config.json").exists():
        return None
    # Read before the checkpoint is asked for: a file of something else is not overwritten.
    found = read_config(request.run)
    if not has_checkpoint(request.run):
        return None
    _check_same(found, request, acquisition)
    return found


def _check_same(found: RunConfig, request: TrainRequest, acquisition: Acquisition) -> None:
    run, budget = request.run, request.budget
    if (found.kind, found.thin, found.acquisition) != (
        request.kind,
        request.decimation,
        acquisition.to_dict(),
    ):
        raise TrainingError(
            f"{run}: holds a run of {found.kind} with another survey or decimation; choose an empty folder"
        )
    for name, option in (("quantised", "quantised"), ("ordered", "nested")):
        wanted = getattr(budget, name)
        if found.budget.get(name, False) != wanted:
            raise TrainingError(
                f"{run}: holds a run {'without' if wanted else 'with'} --{option}; choose an empty folder"
            )
    if (theirs := found.budget.get("optimiser", "adamw")) != budget.optimiser:
        raise TrainingError(
            f"{run}: holds a run that {theirs} optimises; go on with --optimiser {theirs}, or choose an empty folder"
        )
    if found.without != request.ablate:
        raise TrainingError(
            f"{run}: holds a run without {found.without or 'nothing'}; choose an empty folder"
        )
