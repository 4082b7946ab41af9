"""Training steps that stay on an accelerator, which a processor plays: what they are fed, and that they learn."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from small_networks import QUICK_COMPILATION
from small_survey import SURVEY, write_data

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

from firmware_py.inference.companding import Companding  # noqa: E402
from models.data import batches, field_augmentation  # noqa: E402
from models.data.batches import EpicBatches  # noqa: E402
from models.data.gathers import DecimatedSet  # noqa: E402
from models.data.simulated import Simulated, ValidationWhole  # noqa: E402
from models.training import on_device  # noqa: E402

pytestmark = pytest.mark.slow

COMPANDING = Companding(20.0, 7.6, 10)
KEY = jax.random.key(3)


@pytest.fixture
def stored():
    """``(means of 5 samples, normalised maps)`` of 64 samples, float16."""
    rng = np.random.default_rng(0)
    gathers = rng.normal(size=(64, SURVEY.n_time // 5, SURVEY.n_receivers, SURVEY.with_twins().n_sources))
    maps = rng.uniform(-1, 1, size=(64, SURVEY.n_depth, SURVEY.n_width))
    return gathers.astype(np.float16), maps.astype(np.float16)


def test_without_augmentation_the_parts_are_those_of_batches_from_files(stored, monkeypatch):
    for module, name in (
        (field_augmentation, "AUGMENTED_SHARE"),
        (batches, "NOISE_SHARE"),
        (batches, "DROP_OUT_SHARE"),
    ):
        monkeypatch.setattr(module, name, 0.0)
    monkeypatch.setattr(batches, "MIRRORED_SHARE", 0.0)
    gathers, maps = stored
    inputs, truth = on_device.prepare_parts(SURVEY, COMPANDING, None)(
        jnp.asarray(gathers), jnp.asarray(maps), KEY
    )
    gathers = gathers[..., : SURVEY.n_sources]
    thinned = gathers.astype(np.float32).reshape(64, SURVEY.n_time // 10, 2, *gathers.shape[2:]).mean(axis=2)
    data = DecimatedSet(thinned, maps.astype(np.float32), np.array(["flatvel_a"] * 64), SURVEY)
    expected, expected_maps = EpicBatches(data, COMPANDING).plain(np.arange(64))
    np.testing.assert_allclose(inputs["parts"], expected["parts"], atol=1e-5)
    np.testing.assert_array_equal(inputs["mask"], expected["mask"])
    np.testing.assert_array_equal(truth, expected_maps)


def test_a_centralised_network_is_fed_what_its_validation_samples_are(stored, monkeypatch):
    monkeypatch.setattr(batches, "MIRRORED_SHARE", 0.0)
    gathers, maps = stored
    log_range = [-0.7, 1.9]
    whole, truth = on_device.prepare_whole(SURVEY, log_range)(jnp.asarray(gathers), jnp.asarray(maps), KEY)
    validation = DecimatedSet(
        np.empty((64, 0)), maps.astype(np.float32), np.array(["flatvel_a"] * 64), SURVEY
    )
    same = ValidationWhole(
        Simulated(64, [], validation, gathers[..., : SURVEY.n_sources].astype(np.float32)), log_range
    )
    expected, expected_maps = same.plain(np.arange(64))
    assert whole.shape == (64, SURVEY.n_time, SURVEY.n_receivers, SURVEY.n_sources)
    np.testing.assert_allclose(whole, expected, atol=1e-4)
    np.testing.assert_array_equal(truth, expected_maps)


def test_a_mirrored_sample_is_mirrored_whole(stored):
    gathers, maps = (jnp.asarray(array) for array in stored)
    shots, receivers = SURVEY.mirror_order()
    seen, drawn = on_device.flipped(gathers, maps, KEY, SURVEY, 0.5)
    turned = [not np.array_equal(a, b) for a, b in zip(maps, drawn, strict=True)]
    assert 16 < sum(turned) < 48
    for row, is_turned in enumerate(turned):
        mirrored = gathers[row][:, receivers][..., shots]
        expected = mirrored if is_turned else gathers[row][..., : SURVEY.n_sources]
        np.testing.assert_array_equal(seen[row], expected)
        np.testing.assert_array_equal(drawn[row], maps[row][:, :: -1 if is_turned else 1])


def test_devices_are_missing_as_often_as_from_files():
    n, devices = 100_000, 5
    mask = np.asarray(on_device.devices_present(n, devices, KEY))
    same = batches.drop_devices(n, devices, np.random.default_rng(0))
    shares = [np.bincount(m.sum(axis=1).astype(int), minlength=devices + 1) / n for m in (mask, same)]
    np.testing.assert_allclose(shares[0], shares[1], atol=0.01)
    assert mask.sum(axis=1).min() == 1
    np.testing.assert_allclose(mask.mean(axis=0), mask.mean(), atol=0.01)


def test_rates_are_drawn_as_from_files():
    from models.networks.nested_latent import draw_rates

    drawn = on_device.rates(20_000, 3, 128, KEY)
    same = draw_rates(20_000, 3, 128, np.random.default_rng(0))

    def shares(values, bits):
        pairs, counts = np.unique(np.stack([values.ravel(), bits.ravel()]), axis=1, return_counts=True)
        return pairs, counts / counts.sum()

    (pairs, found), (expected_pairs, expected) = shares(*map(np.asarray, drawn)), shares(*same)
    np.testing.assert_array_equal(pairs, expected_pairs)
    np.testing.assert_allclose(found, expected, atol=0.01)
    alike = [(values.min(axis=1) == values.max(axis=1)).mean() for values in (np.asarray(drawn[0]), same[0])]
    assert alike[0] == pytest.approx(alike[1], abs=0.02)


def test_as_many_spreads_are_sparse_as_on_the_host(monkeypatch):
    monkeypatch.setattr(field_augmentation, "DEAD_SHARE", 0.0)
    gathers = np.ones((4000, 4, SURVEY.n_receivers, 1), np.float32)
    silent = np.asarray(on_device.field_augmented(jnp.asarray(gathers), SURVEY, 0.01, KEY) == 0).all(
        axis=(1, 3)
    )
    expected = field_augmentation.beyond_sparse_spread(
        np.random.default_rng(0).random((4000, 4)), SURVEY.n_receivers
    )
    assert silent.any(axis=1).mean() == pytest.approx(field_augmentation.SPARSE_SHARE, abs=0.02)
    assert silent.mean() == pytest.approx(expected.mean(), abs=0.01)


def test_faults_are_of_the_stated_strengths(monkeypatch):
    monkeypatch.setattr(field_augmentation, "SPARSE_SHARE", 0.0)
    time_s = np.arange(100) * 0.01
    wave = np.exp(-(((time_s - 0.5) / 0.06) ** 2))
    gathers = np.broadcast_to(wave[None, :, None, None], (400, 100, SURVEY.n_receivers, SURVEY.n_sources))
    augmented = np.asarray(on_device.field_augmented(jnp.asarray(gathers, jnp.float32), SURVEY, 0.01, KEY))
    peak = augmented[:, 50, :, 0]
    assert (np.abs(augmented).max(axis=(1, 3)) == 0).mean() == pytest.approx(
        field_augmentation.DEAD_SHARE, abs=0.01
    )
    assert (peak < -0.3).mean() == pytest.approx(field_augmentation.REVERSED_SHARE, abs=0.005)
    gains = peak[peak > 0.3]
    assert np.log(gains).std() == pytest.approx(field_augmentation.GAIN_SPREAD, rel=0.1)
    # A device's receivers are late together: where the wave is steep, its receivers differ by their gains alone.
    own = np.where(np.abs(peak[:, None, :7]) > 0.3, augmented[:, :, :7, 0], np.nan)
    centre = (own * time_s[None, :, None]).sum(axis=1) / own.sum(axis=1)
    assert np.nanmax(np.nanstd(centre, axis=1)) < 1e-4
    assert np.nanstd(np.nanmean(centre, axis=1)) == pytest.approx(field_augmentation.JITTER_S, rel=0.15)


def test_noise_is_on_half_of_the_samples():
    quiet = jnp.zeros((2000, 10, 4, 2))
    levels = np.asarray(on_device.with_noise(quiet, KEY, (1e-5, 5e-4))).std(axis=(1, 2, 3))
    noisy = levels[levels > 0]
    assert len(noisy) / 2000 == pytest.approx(batches.NOISE_SHARE, abs=0.05)
    assert 0.5e-5 < noisy.min() < 1.5e-5
    assert 3.5e-4 < noisy.max() < 1e-3


def test_noise_is_as_loud_as_from_files(monkeypatch):
    """Of a companding for waves a hundred times as weak as the benchmark's."""
    monkeypatch.setattr(field_augmentation, "AUGMENTED_SHARE", 0.0)
    companding = Companding(2000.0, COMPANDING.c, 10)
    silence = np.zeros((400, SURVEY.n_time // 10, SURVEY.n_receivers, SURVEY.n_sources), np.float16)
    maps = np.zeros((400, SURVEY.n_depth, SURVEY.n_width), np.float32)
    data = DecimatedSet(silence, maps, np.array(["flatvel_a"] * 400), SURVEY)
    from_files, _ = EpicBatches(data, companding).training(np.arange(400), np.random.default_rng(0))
    stored = jnp.zeros((400, SURVEY.n_time // 5, *silence.shape[2:]), jnp.float16)
    here, _ = on_device.prepare_parts(SURVEY, companding, None)(stored, jnp.asarray(maps), KEY)
    levels = [
        np.sort(np.asarray(parts)[:, 0].std(axis=(1, 2, 3))) for parts in (from_files["parts"], here["parts"])
    ]
    assert levels[1].max() == pytest.approx(levels[0].max(), rel=0.2)
    assert np.median(levels[1][levels[1] > 0]) == pytest.approx(np.median(levels[0][levels[0] > 0]), rel=0.4)


SCRIPT = """
import re, sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
sys.path.insert(0, sys.argv[1])
from small_networks import use_small_networks
from small_survey import SURVEY
import models.training.on_device
from models.data.gathers import load_decimated
from models.networks.network import map_loss
from models.training.request import TrainRequest
from models.training.run import start_run
from models.data.simulated import Simulated
from models.training.budget import Budget
from physics.files.openfwi_files import find_pairs

truth, drawn = jnp.zeros((2, 20, 20, 1)), jnp.zeros((2, 20, 20, 2))
text = jax.jit(jax.grad(lambda drawn: map_loss(truth, drawn))).lower(drawn).as_text()
products = text.splitlines()
products = [line for line in products if "dot_general" in line]
assert products and all("HIGHEST" in line for line in products), products

use_small_networks()
folder, run = Path(sys.argv[2]), Path(sys.argv[3])
thinned = load_decimated([folder], SURVEY, 10)
(pair,) = find_pairs(folder, SURVEY)
gathers = np.asarray(pair.gathers()).transpose(0, 2, 3, 1)
means = gathers.reshape(len(gathers), -1, 5, *gathers.shape[2:]).mean(axis=2)
maps = thinned.maps.astype(np.float16)
shards = [(jnp.asarray(means[a:a + 45], jnp.float16), jnp.asarray(maps[a:a + 45])) for a in (0, 45)]
kept = type(thinned)(thinned.gathers[90:], thinned.maps[90:], thinned.families[90:], SURVEY)
models.training.on_device.OnDevice.__init__.__defaults__ = (3,)
losses, learn = [], models.training.on_device.OnDevice.learn
models.training.on_device.OnDevice.learn = lambda *drawn: losses.append(learn(*drawn)) or losses[-1]
start_run(TrainRequest("epic", [folder], run, Budget(batch=15, epochs=10, learning_rate=3e-3, optimiser="muon"),
          encoder="micro", acquisition=SURVEY, source=lambda: Simulated(100, shards, kept, means[90:])))
assert np.mean(losses[-3:]) < 0.7 * losses[0], losses
"""


@pytest.mark.long
def test_a_network_learns_without_leaving_the_accelerator(tmp_path):
    folder, run = write_data(tmp_path / "data"), tmp_path / "run"
    support = os.path.dirname(sys.modules["small_survey"].__file__)
    command = [sys.executable, "-c", SCRIPT, support, str(folder), str(run)]
    environment = os.environ | {"KERAS_BACKEND": "jax", "XLA_FLAGS": QUICK_COMPILATION}
    subprocess.run(command, env=environment, check=True, timeout=300)
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    metrics = json.loads((run / "metrics.json").read_text())
    # The validation error in training, and that of the saved networks: those with the best weights.
    (best,) = [row for row in rows if row["step"] == metrics["best"]["step"]]
    assert metrics["families"]["all"]["mae"] == pytest.approx(best["validation_mae"], rel=0.02)
    assert metrics["step"] == rows[-1]["step"] == 60
    assert json.loads((run / "config.json").read_text())["simulated"] == 100
    assert all((run / f"{name}.keras").exists() for name in ("encoder", "decoder"))
