"""Simulated training sets: which samples they hold, and that a gather stays with its map.

The GPU is played by NumPy, the kernel by a gather that carries its map's mark.
"""

import json
import sys
import types
import zlib

import keras
import numpy as np
import pytest
from small_survey import SURVEY
from typer.testing import CliRunner

from models.cli import app
from models.data import simulated
from models.data.simulated import read_sequence, shard_shapes, simulate, whole_records
from models.errors import TrainingError
from models.training.budget import Budget
from models.training.request import TrainRequest
from models.training.run import split_validation, start_run
from physics import sequence
from physics.acquisition import Acquisition
from physics.engines import cuda as engine_cuda
from physics.errors import ModellingError
from physics.families import generate_map
from physics.modelling import model_gathers
from physics.normalise import normalise_velocity
from physics.sequence import Sequence

pytestmark = pytest.mark.slow

FAMILIES = ("flatvel_a", "curvefault_b", "style_a")
OF_SEED_5 = Sequence(FAMILIES, 5, SURVEY)


def mark(maps, n_time):
    """A signal that tells maps apart, ``(n, n_time)`` float16."""
    rows = [
        np.random.default_rng(zlib.crc32(np.ascontiguousarray(one).tobytes())).random(n_time) for one in maps
    ]
    return np.array(rows).astype(np.float16)


@pytest.fixture
def gpu(monkeypatch):
    """NumPy in the place of CuPy and JAX."""
    cupy = types.ModuleType("cupy")
    cupy.empty, cupy.asarray, cupy.asnumpy = np.empty, np.asarray, np.asarray
    runtime = types.SimpleNamespace(getDeviceCount=lambda: 1, CUDARuntimeError=RuntimeError)
    cupy.cuda = types.SimpleNamespace(
        Device=lambda: types.SimpleNamespace(synchronize=lambda: None), runtime=runtime
    )
    cupy.get_default_memory_pool = lambda: types.SimpleNamespace(free_all_blocks=lambda: None)
    jax = types.ModuleType("jax")
    jax.dlpack = types.SimpleNamespace(from_dlpack=lambda array: array)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "jax", jax)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")

    def record(maps, acquisition, average):
        n_time = acquisition.n_time // average
        shape = (len(maps), n_time, acquisition.n_receivers, acquisition.n_sources)
        return np.broadcast_to(mark(maps, n_time)[:, :, None, None], shape).astype(np.float32)

    monkeypatch.setattr(engine_cuda, "record", record)
    monkeypatch.setattr(sequence, "INDICES_A_TASK", 30)
    monkeypatch.setattr(simulated, "SHARD_SAMPLES", 128)


def expected_maps(index_filter, count):
    return {
        (family, index): normalise_velocity(generate_map(family, 5, index, SURVEY)[0], SURVEY)
        for index in range(count)
        for family in FAMILIES
        if index_filter(index)
    }


def test_every_sample_but_the_watched_is_there_once_with_its_own_gather(gpu):
    count = 130
    told = []
    found = simulate(OF_SEED_5, count, 10, lambda done, total: told.append((done, total)))
    assert told[-1] == (count * 3, count * 3)
    # 384 samples to train on are three shards of 128.
    assert [len(maps) for _, maps in found.shards] == [128, 128, 128]
    assert found.trained_on == 384
    assert tuple(array.shape for array in found.shards[0]) == shard_shapes(OF_SEED_5, count)
    n_time = SURVEY.n_time // simulated.STORED_AVERAGE
    by_mark = {
        mark(generate_map(family, 5, index, SURVEY), n_time).tobytes(): normalised
        for (family, index), normalised in expected_maps(lambda i: i % 50 != 49, count).items()
    }
    seen = set()
    for gathers, maps in found.shards:
        assert gathers.dtype == maps.dtype == np.float16
        for gather, normalised in zip(gathers, maps, strict=True):
            its = np.ascontiguousarray(gather[:, 0, 0]).tobytes()
            np.testing.assert_allclose(normalised, by_mark[its], atol=1e-3)
            seen.add(its)
    assert len(seen) == 384


def test_every_fiftieth_sample_is_watched_as_in_a_data_sets_files(gpu):
    found = simulate(OF_SEED_5, 100, 10)
    assert found.validation.families.tolist() == list(FAMILIES) * 2
    expected = expected_maps(lambda i: i % 50 == 49, 100)
    for row, (_family, index) in enumerate((f, i) for i in (49, 99) for f in FAMILIES):
        np.testing.assert_allclose(found.validation.maps[row], expected[FAMILIES[row % 3], index], atol=1e-6)
    assert found.validation.gathers.shape == (6, SURVEY.n_time // 10, SURVEY.n_receivers, SURVEY.n_sources)


def test_a_set_smaller_than_a_shard_is_one(gpu, monkeypatch):
    monkeypatch.setattr(simulated, "SHARD_SAMPLES", 1000)
    found = simulate(OF_SEED_5, 50, 10)
    assert [len(maps) for _, maps in found.shards] == [147]


def test_samples_that_do_not_fill_a_shard_are_left_out(gpu):
    found = simulate(OF_SEED_5, 50, 10)
    assert [len(maps) for _, maps in found.shards] == [128]


def test_whole_records_come_back_from_means():
    survey = Acquisition.openfwi()
    maps = np.stack([generate_map("curvefault_a", 3, 0, survey)])
    gather = model_gathers(maps, survey)[0, ::2, :, ::10]
    means = gather.reshape(3, 200, 5, 7).mean(axis=2).astype(np.float16).astype(np.float32)
    whole = np.einsum("ts,nsr->ntr", whole_records(1000, 5), means)
    assert np.linalg.norm(whole - gather) < 1e-3 * np.linalg.norm(gather)
    late, expected = whole[:, 600:], gather[:, 600:]
    assert np.linalg.norm(late - expected) < 0.02 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "deepwave"}, "of engine openfwi or cuda from its first sample, got deepwave from 0"),
        ({"first": 500}, "got openfwi from 500"),
        ({"seed": None}, "expected the manifest of a data set"),
        ({"count": 130}, "a multiple of 50 samples a family, .* got 130; generate 100 in another folder"),
        ({"count": 30}, "a multiple of 50 samples a family, .* got 30; generate 50 in another folder"),
        ({"count": None}, "expected the manifest of a data set"),
    ],
)
def test_a_sequence_that_cannot_go_on_is_refused(tmp_path, changes, message):
    manifest = {
        "families": ["flatvel_a"],
        "seed": 3,
        "count": 800,
        "engine": "openfwi",
        "acquisition": SURVEY.to_dict(),
        **changes,
    }
    if manifest["seed"] is None:
        del manifest["seed"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(TrainingError, match=message):
        read_sequence(tmp_path)


@pytest.mark.parametrize("count", [50, 800])
def test_what_a_sequence_keeps_from_training_files_of_its_data_set_do_too(tmp_path, count):
    manifest = {"families": FAMILIES, "seed": 3, "engine": "cuda", "acquisition": SURVEY.to_dict()}
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "count": count}))
    n = count * len(read_sequence(tmp_path).families)
    _, trained_on = split_validation(n)
    kept = np.setdiff1d(np.arange(n), trained_on)
    assert (kept % count % simulated.VALIDATION_EVERY == simulated.VALIDATION_EVERY - 1).all()


def test_without_jax_with_another_thinning_or_too_few_nothing_is_simulated(gpu, monkeypatch):
    with pytest.raises(TrainingError, match="--decimation that is a multiple of 5 with --simulate, got 8"):
        simulate(OF_SEED_5, 100, 8)
    with pytest.raises(TrainingError, match="expected at least as many a family, got 49"):
        simulate(OF_SEED_5, 49, 10)
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    with pytest.raises(TrainingError, match="set KERAS_BACKEND=jax, or train on files"):
        simulate(OF_SEED_5, 100, 10)


def test_without_cupy_or_a_gpu_it_says_what_is_missing(gpu, monkeypatch):
    def none_found():
        raise RuntimeError("no CUDA-capable device is detected")

    monkeypatch.setattr(sys.modules["cupy"].cuda.runtime, "getDeviceCount", none_found)
    with pytest.raises(ModellingError, match=r"found no GPU that it can use \(no CUDA-capable device"):
        simulate(OF_SEED_5, 100, 10)
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ModellingError, match=r"needs cupy; .*pip install -e '\.\[gpu\]'"):
        simulate(OF_SEED_5, 100, 10)
    with pytest.raises(ModellingError, match=r"needs cupy; .*pip install -e '\.\[gpu\]'"):
        model_gathers(generate_map("flatvel_a", 5, 0, SURVEY)[None], SURVEY, engine="cuda")


def test_what_cannot_be_trained_on_simulated_samples_is_refused_before_they_are_made(tmp_path):
    def never():
        raise AssertionError("simulated")

    with pytest.raises(TrainingError, match="on the sequence of one --data; leave it out"):
        start_run(TrainRequest("federated", [tmp_path], tmp_path / "run", Budget(epochs=1), source=never))


def test_another_survey_than_the_sequences_is_refused(tmp_path):
    given = ["train", "epic", "--data", "data", "--out", str(tmp_path / "run"), "--simulate", "100"]
    result = CliRunner().invoke(app, [*given, "--survey", "other.toml"])
    assert isinstance(result.exception, TrainingError) and "leave out --survey" in str(result.exception)
    assert not (tmp_path / "run").exists()
