"""Adapt the decoder to the survey that the centre serves, from the latents and recordings it has received.

A round predicts the maps of the survey's events and draws variants of them. It models the gathers of all, encodes these
as the devices do, and trains the decoder on the exact pairs, mixed with samples of the original families. Maps refined
from recordings stay as they are, and have more variants. The next round predicts with the decoder of this one. Devices
keep their encoder.

Unfinished work is in ``data_dir/adapted/.work``; the same command continues there after an interruption.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from central.config import ModelSection
from central.learning.events import (
    BY_RECORDING,
    PREDICTED,
    SurveyEvents,
    find_model,
    read_events,
)
from central.learning.gate import MAX_TEST_COST_PERCENT, Figures, choose_round
from central.learning.variants import draw_variant
from central.learning.versions import (
    FOLDER,
    LOCK_NAME,
    AdaptationError,
    AdaptationRejectedError,
    Version,
    list_versions,
    publish,
    section_in_use,
)
from central.pipeline.decoders import open_release, released_sha256
from central.recordings.gathers import read_recording
from central.storage.database import lock
from central.verification.check import gather_misfit, latent_distance
from central.verification.check_inputs import latent_model
from firmware_py.inference.bundle import Bundle
from firmware_py.inference.encoder import Encoder
from models.data.gathers import DecimatedSet, decimate_gathers, load_decimated
from models.inversion.decoder import OOD_FILE, Decoder, load_decoder
from models.inversion.latent_model import LatentModel
from models.inversion.ood import load_ood
from models.training.adaptation import LatentBatches, Split, adapt_decoder, blend, write_decoder
from models.training.budget import Budget
from models.training.run_config import write_json
from models.training.training import load_network
from physics.acquisition import Acquisition
from physics.errors import ModellingError
from physics.families import FAMILIES, generate_map
from physics.files.atomic import atomic_write
from physics.modelling import model_gathers, require_engine
from physics.normalise import normalise_velocity

WORK = ".work"
# Family name of the survey's own samples.
SURVEY = "survey"
# Times that a map refined from a recording counts in training.
RECORDED_COUNTS = 4
# Variants of each map, and of one refined from a recording.
VARIANTS, RECORDED_VARIANTS = 3, 60
# Standard deviation by which the velocities of a refined map are varied, in m/s.
REFINED_MPS = 100.0
# Held-back events that the gate models, spread over all.
MAX_JUDGED = 40
# Maps modelled before they are saved; an interruption costs at most one such chunk.
CHUNK_MAPS = 10
# Seeds of the drawn maps. No released model was trained on them; the test set is the same for every adaptation.
TEST_SEED, ORIGINAL_SEED = 9_000_000, 7_000_000
# Samples of the original families that are drawn where none are given.
DRAWN_ORIGINALS = 500

Report = Callable[[str, float], None]


@dataclass(frozen=True)
class Settings:
    """Settings of an adaptation.

    Attributes:
        rounds: Rounds of prediction and training.
        minutes: Training time of each round, without modelling.
        events: Number of events to learn from, the most recently decoded.
        engine: Engine that models the training gathers (``physics.modelling``).
        original: OpenFWI folders of the original families; without them, samples are drawn and modelled.
        originals: Number of samples of the original families; None: all that are given, or ``DRAWN_ORIGINALS``.
        tests: Number of drawn test samples of the gate.
    """

    rounds: int = 3
    minutes: float = 10.0
    events: int = 1000
    engine: str = "openfwi"
    original: tuple[Path, ...] = ()
    originals: int | None = None
    tests: int = 100
    batch: int = 32
    learning_rate: float = 5e-4
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {**asdict(self), "original": [str(folder.resolve()) for folder in self.original]}


@dataclass(frozen=True)
class Adapted:
    """A published version, with the figures before and after each round; ``chosen`` is the round that was taken."""

    version: Version
    before: Figures
    rounds: list[Figures]
    chosen: int


def adapt(
    data_dir: Path,
    models: Sequence[ModelSection],
    settings: Settings,
    survey: int | None = None,
    on_progress: Report = lambda what, share: None,
) -> Adapted:
    """Adapt the decoder in use and publish it as a new version, if it passes the gate. It is not put in use.

    Args:
        models: Those of the configuration.
        on_progress: Called with the name of a step and the share of it that is done.

    Raises:
        AdaptationRejectedError: No round passes the gate; nothing is written.
        AdaptationError: There are too few events, or an interrupted adaptation has other settings.
        CentralError, ModelsError, BundleError: As in reading the store, training and loading.
    """
    with closing(lock(data_dir, LOCK_NAME, "another `epic central adapt`")):
        release, bundle = find_model(data_dir, models, survey, settings.events)
        parent_section = section_in_use(data_dir, release)
        _, parent = open_release(parent_section)
        work = work_folder(data_dir)
        events = _claim(work, data_dir, settings, parent, bundle, survey)
        try:
            require_engine(settings.engine)
            learning = Learning(data_dir, events, settings, bundle, parent, release, on_progress)
            before, rounds = learning.run()
        except ModellingError as error:
            raise AdaptationError(f"adapt: {error}") from None
        chosen, reason = choose_round(before, rounds)
        if chosen is None:
            _remove(work)
            raise AdaptationRejectedError(f"adapt: rejected, nothing was written; {reason}")
        version = _publish(data_dir, events, settings, bundle, parent, (before, rounds, chosen))
        _remove(work)
    return Adapted(version, before, rounds, chosen + 1)


def work_folder(data_dir: Path) -> Path:
    """Return the folder of an unfinished adaptation."""
    return data_dir / FOLDER / WORK


def _claim(
    work: Path,
    data_dir: Path,
    settings: Settings,
    parent: Decoder,
    bundle: Bundle,
    survey: int | None,
) -> SurveyEvents:
    """Begin in ``work``, or continue there with the same settings and decoder; return the events."""
    wanted = {"settings": settings.to_dict(), "survey": survey, "parent_sha256": parent.sha256}
    request, kept = work / "request.json", work / "events.npz"
    if request.exists() and kept.exists():
        if json.loads(request.read_text()) == wanted:
            return SurveyEvents.load(kept)
        raise AdaptationError(
            f"{work}: holds an interrupted adaptation with other options or from another decoder; give the same "
            "options to go on with it, or remove the folder"
        )
    events = read_events(data_dir, bundle, parent.acquisition, survey, settings.events)
    # Without a request, the folder is the rest of an interrupted removal.
    _remove(work)
    work.mkdir(parents=True)
    events.save(kept)
    _keep_recordings(data_dir, work, events)
    write_json(request, wanted)
    return events


def _keep_recordings(data_dir: Path, work: Path, events: SurveyEvents) -> None:
    """Copy the recordings of judged events, so that all figures of an adaptation are of the same recordings."""
    for row in judged_rows(events):
        survey, event, _ = events.keys[row].tolist()
        recorded = read_recording(data_dir, survey, event)
        if recorded is not None:
            path = _recording_path(work, row)
            path.parent.mkdir(exist_ok=True)
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                np.save(file, recorded)


def _recording_path(work: Path, row: int) -> Path:
    return work / "recordings" / f"{row:06d}.npy"


def judged_rows(events: SurveyEvents) -> np.ndarray:
    """Return the rows of the held-back events on which the gate decides, evenly spread."""
    held_back = np.flatnonzero(events.is_held_back)
    return held_back[:: -(-len(held_back) // MAX_JUDGED)]


def _remove(work: Path) -> None:
    """Remove the work folder. An interruption leaves no part of it under its name."""
    renamed = work.with_name(f"{work.name}.old")
    if renamed.exists():
        shutil.rmtree(renamed)
    if work.exists():
        work.rename(renamed)
        shutil.rmtree(renamed)


class Learning:
    """The rounds of one adaptation. Each step is kept in the work folder and not repeated after an interruption."""

    def __init__(
        self,
        data_dir: Path,
        events: SurveyEvents,
        settings: Settings,
        bundle: Bundle,
        parent: Decoder,
        release: ModelSection,
        on_progress: Report,
    ) -> None:
        self._work = work_folder(data_dir)
        self._events = events
        self._settings = settings
        self._bundle = bundle
        self._parent = parent
        self._on_progress = on_progress
        self._acquisition: Acquisition = parent.acquisition
        self._encoder = Encoder(bundle)
        self._judged = judged_rows(events)
        # The released model's unit, so that figures of successive adaptations compare.
        spread = load_ood(release.decoder / OOD_FILE, parent.latent).spread
        self._latent_model: LatentModel = latent_model(bundle, self._acquisition, spread)

    def run(self) -> tuple[Figures, list[Figures]]:
        """Return the figures before and after each round."""
        tests, originals = self._drawn("test", TEST_SEED, self._settings.tests), self._originals()
        before: Figures | None = None
        rounds: list[Figures] = []
        decoder = self._parent
        for number in range(1, self._settings.rounds + 1):
            folder = self._work / f"round-{number}"
            path = folder / "figures.json"
            if not path.exists():
                known_mae = before.test_mae if before else None
                mae_before, mae_after = self._train(number, folder, decoder, tests, originals, known_mae)
                found = {"after": asdict(self._judge(load_decoder(folder / "decoder"), mae_after))}
                if number == 1:
                    found["before"] = asdict(self._judge(decoder, mae_before))
                write_json(path, found)
            figures = json.loads(path.read_text())
            before = before or Figures(**figures["before"])
            rounds.append(Figures(**figures["after"]))
            decoder = load_decoder(folder / "decoder")
        assert before
        return before, rounds

    def _drawn(self, name: str, seed: int, count: int) -> DecimatedSet:
        """Draw and model ``count`` samples of the original families, in turn."""
        a = self._acquisition
        families = [FAMILIES[i % len(FAMILIES)] for i in range(count)]
        maps = np.stack(
            [generate_map(family, seed, i // len(FAMILIES), a)[0] for i, family in enumerate(families)]
        )
        gathers = self._model(maps, self._work / name, f"modelling {name} samples")
        return DecimatedSet(gathers, normalise_velocity(maps, a).astype(np.float32), np.array(families), a)

    def _originals(self) -> DecimatedSet:
        s = self._settings
        if not s.original:
            return self._drawn("original", ORIGINAL_SEED + s.seed, s.originals or DRAWN_ORIGINALS)
        data = load_decimated(list(s.original), self._acquisition, self._bundle.companding.thin)
        some = np.random.default_rng(s.seed).permutation(len(data))[: s.originals]
        return DecimatedSet(data.gathers[some], data.maps[some], data.families[some], data.acquisition)

    def _model(self, maps_mps: np.ndarray, folder: Path, what: str) -> np.ndarray:
        """Model maps ``(n, nz, nx)``; return the decimated gathers ``(n, T/thin, R, S)`` float16."""
        folder.mkdir(parents=True, exist_ok=True)
        chunks = []
        for start in range(0, len(maps_mps), CHUNK_MAPS):
            path = folder / f"{start:06d}.npy"
            some = maps_mps[start : start + CHUNK_MAPS, None]
            if _count_gathers(path) != len(some):
                self._on_progress(what, start / len(maps_mps))
                gathers = model_gathers(some, self._acquisition, self._settings.engine)
                with atomic_write(path) as temporary, temporary.open("wb") as file:
                    np.save(file, decimate_gathers(gathers, self._bundle.companding.thin))
            chunks.append(np.load(path))
        return np.concatenate(chunks)

    def _decode(self, decoder: Decoder, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predict the maps of events and their uncertainty, both ``(n, nz, nx)`` in m/s."""
        latents, present = self._events.latents[rows], self._events.present[rows]
        velocity_mps, uncertainty_mps = decoder.decode_batch(latents, present)
        return velocity_mps[:, 0], uncertainty_mps[:, 0]

    def _survey_maps(self, number: int, decoder: Decoder) -> tuple[np.ndarray, np.ndarray]:
        """Return the maps to learn from in a round and how often each counts.

        Args:
            number: Of the round.
            decoder: Predicts the maps.

        Returns:
            Maps ``(n, nz, nx)`` in m/s, those of the events and then their variants, and counts ``(n,)``.
        """
        events = self._events
        rows = np.flatnonzero(~events.is_held_back)
        kinds = events.kind[rows]
        is_predicted = (kinds == PREDICTED)[:, None, None]
        velocity_mps, uncertainty_mps = self._decode(decoder, rows)
        maps_mps = np.where(is_predicted, velocity_mps, events.refined_mps[rows])
        uncertainty_mps = np.where(is_predicted, uncertainty_mps, REFINED_MPS)
        is_recorded = kinds == BY_RECORDING
        rng = np.random.default_rng([self._settings.seed, number])
        variants = np.repeat(np.arange(len(rows)), np.where(is_recorded, RECORDED_VARIANTS, VARIANTS))
        varied = [draw_variant(maps_mps[i], uncertainty_mps[i], rng, self._acquisition) for i in variants]
        counts = np.concatenate([np.where(is_recorded, RECORDED_COUNTS, 1), np.ones(len(varied), int)])
        return np.concatenate([maps_mps, varied]), counts

    def _train(
        self,
        number: int,
        folder: Path,
        start: Decoder,
        tests: DecimatedSet,
        originals: DecimatedSet,
        known_mae: float | None,
    ) -> tuple[float, float]:
        """Train one round from the decoder ``start`` and write its decoder.

        Args:
            number: Of the round.
            folder: Of the round.
            start: Decoder to start from.
            tests: Test set.
            originals: Samples of the original families.
            known_mae: Error of the adaptation's first decoder on the test set; None in the first round.

        Returns:
            The error of ``start`` on the test set, and that of the decoder written.
        """
        s = self._settings
        maps_mps, counts = self._survey_maps(number, start)
        gathers = self._model(maps_mps, folder / "gathers", f"round {number}: modelling the survey's maps")
        maps = normalise_velocity(maps_mps, self._acquisition).astype(np.float32)
        data = DecimatedSet(
            np.concatenate([tests.gathers, originals.gathers, gathers]),
            np.concatenate([tests.maps, originals.maps, maps]),
            np.concatenate([tests.families, originals.families, np.full(len(maps), SURVEY)]),
            self._acquisition,
        )
        latent = self._parent.latent
        batches = LatentBatches(data, self._bundle.companding, self._encoder.encode_parts, latent)
        first = len(tests) + len(originals)
        own = np.repeat(np.arange(first, len(data)), counts)
        # The test set selects no weights. It only limits how far they may move, as the gate does.
        split = Split(mix(np.arange(len(tests), first), own), np.arange(len(tests)), selects=False)
        learner = load_network(start.folder / "decoder.keras")
        budget = Budget(
            batch=s.batch,
            learning_rate=s.learning_rate,
            minutes=s.minutes,
            seed=s.seed + number,
            optimiser="muon",
            ordered=True,
        )

        def on_progress(share: float, figures: dict) -> None:
            self._on_progress(f"round {number}: training, loss {figures['loss']:.4f}", share)

        found = adapt_decoder(learner, batches, split, budget, folder, on_progress)
        mae_before = found.before["all"]["mae"]
        most_mae = (known_mae or mae_before) * (1 + MAX_TEST_COST_PERCENT / 100)
        parent = load_network(self._parent.folder / "decoder.keras").get_weights()
        _, mae_after = blend(learner, parent, batches, split.validation, most_mae)
        write_decoder(folder / "decoder", learner, self._parent, batches, split)
        return mae_before, mae_after

    def _judge(self, decoder: Decoder, test_mae: float) -> Figures:
        """Measure how well a decoder explains the held-back events."""
        distances, misfits = [], []
        maps_mps, _ = self._decode(decoder, self._judged)
        for done, (row, map_mps) in enumerate(zip(self._judged, maps_mps, strict=True)):
            self._on_progress("checking held-back events", done / len(self._judged))
            received, steps = self._events.received[row], self._events.steps[row]
            distances.append(latent_distance(self._latent_model, map_mps, received, steps))
            path = _recording_path(self._work, row)
            if path.exists():
                misfits.append(gather_misfit(map_mps, np.load(path), self._acquisition)[0])
        return Figures(test_mae, float(np.mean(distances)), float(np.mean(misfits)) if misfits else None)


def _count_gathers(path: Path) -> int:
    """Return the number of gathers in a chunk; 0 without one, or if it is damaged."""
    try:
        return len(np.load(path, mmap_mode="r"))
    except (OSError, ValueError, EOFError):
        return 0


def mix(original: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Return both groups of indices, the smaller one repeated so that each is half of the training samples."""
    most = max(len(original), len(own))
    return np.concatenate([np.resize(original, most), np.resize(own, most)])


def _publish(
    data_dir: Path,
    events: SurveyEvents,
    settings: Settings,
    bundle: Bundle,
    parent: Decoder,
    judged: tuple[Figures, list[Figures], int],
) -> Version:
    before, rounds, chosen = judged
    decoder = work_folder(data_dir) / f"round-{chosen + 1}" / "decoder"
    decoder_sha256 = json.loads((decoder / "decoder.json").read_text())["sha256"]
    for version in list_versions(data_dir):
        # The process was killed after it had published, before it removed the work folder.
        if version.record.get("decoder_sha256") == decoder_sha256:
            return version
    is_trained_on = ~events.is_held_back
    summary = {
        "released_sha256": released_sha256(parent),
        "parent_version": (parent.adaptation or {}).get("version", 0),
        "parent_sha256": parent.sha256,
        "rounds": chosen + 1,
        "events": int(is_trained_on.sum()),
        "recordings": int((events.kind[is_trained_on] == BY_RECORDING).sum()),
    }
    details = {
        "model_hash": parent.model_hash,
        "decoder_sha256": decoder_sha256,
        "settings": settings.to_dict(),
        "figures": {"before": asdict(before), "rounds": [asdict(found) for found in rounds]},
        "events_trained_on": events.keys[is_trained_on].tolist(),
        "events_held_back": events.keys[events.is_held_back].tolist(),
    }
    metrics = {"adapted": {"all": round(rounds[chosen].test_mae, 5)}}
    return publish(data_dir, bundle, decoder, summary, details, metrics)
