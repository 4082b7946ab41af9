"""Physics: the scheme against its equations, waves against their laws, engines against each other."""

import os
from pathlib import Path

import numpy as np
import pytest

from physics.acquisition import Acquisition
from physics.engines.openfwi import PAD_CELLS, model, shots
from physics.errors import ModellingError
from physics.families import generate_map
from physics.modelling import model_gathers
from physics.wavelet import ricker

FULL = Acquisition.openfwi()


def survey(**values) -> Acquisition:
    return Acquisition.from_dict({**FULL.to_dict(), **values})


SMALL = survey(
    n_depth=24,
    n_width=30,
    n_time=260,
    source_cells=[3, 21],
    receiver_cells=list(range(30)),
    device_receivers=[list(range(15)), list(range(15, 30))],
)


def small_map(seed=0):
    rng = np.random.default_rng(seed)
    layers = np.repeat(rng.uniform(1600, 4300, 6), 4)
    return np.repeat(layers[:, None], 30, axis=1)[None, None].astype(np.float32)


def reference(velocity, a):
    """The same equations in plain float64 numpy, loops where loops read best."""
    p = PAD_CELLS
    v = np.pad(velocity.astype(np.float64), p, mode="edge")
    nz, nx = v.shape
    edge_m = (p - 1) * a.dx_m
    damping = np.zeros_like(v)
    for i in range(p):
        d = velocity.min() * 3 * np.log(1e7) / (2 * edge_m) * (i * a.dx_m / edge_m) ** 2
        damping[:, p - 1 - i] = damping[:, nx - p + i] = d
    for i in range(p):
        d = velocity.min() * 3 * np.log(1e7) / (2 * edge_m) * (i * a.dx_m / edge_m) ** 2
        damping[p - 1 - i, p : nx - p] = damping[nz - p + i, p : nx - p] = d
    alpha = (v * a.dt_s / a.dx_m) ** 2
    wavelet = ricker(a).astype(np.float64)
    gathers = []
    for cell in a.source_cells:
        now, before = np.zeros_like(v), np.zeros_like(v)
        traces = []
        for n in range(a.n_time):
            first = sum(np.roll(now, shift, axis) for shift in (-1, 1) for axis in (0, 1))
            second = sum(np.roll(now, shift, axis) for shift in (-2, 2) for axis in (0, 1))
            after = (2 - 5 * alpha - damping * a.dt_s) * now - (1 - damping * a.dt_s) * before
            after += alpha * (4 / 3 * first - second / 12)
            source = (p + a.source_row, p + cell)
            after[source] += (v[source] * a.dt_s) ** 2 * wavelet[n]
            now, before = after, now
            traces.append(now[p + a.receiver_row, [p + c for c in a.receiver_cells]])
        gathers.append(traces)
    return np.array(gathers)


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def test_the_openfwi_engine_is_its_equations():
    velocity = small_map()
    ours = model_gathers(velocity, SMALL, "openfwi")[0]
    assert relative(ours, reference(velocity[0, 0], SMALL)) < 2e-5


def test_the_openfwi_engine_is_its_equations_for_any_geometry():
    """Buried sources, receivers in another row, out of order and apart; a record that is no round number."""
    a = survey(
        n_depth=20,
        n_width=30,
        n_time=233,
        source_row=9,
        receiver_row=4,
        source_cells=[25, 2, 11],
        receiver_cells=[7, 3, 29, 12],
        device_receivers=[[0, 1], [2, 3]],
    )
    velocity = small_map(1)[:, :, :20]
    ours = model_gathers(velocity, a, "openfwi")[0]
    assert relative(ours, reference(velocity[0, 0], a)) < 2e-5


def test_leaving_out_what_cannot_be_heard_changes_nothing():
    """The computed part of the grid follows the waves; the fastest earth is the hardest case."""
    a = survey(
        n_depth=24,
        n_width=30,
        n_time=500,
        source_cells=[3],
        receiver_cells=list(range(30)),
        device_receivers=[list(range(30))],
    )
    earth = np.full((24, 30), a.velocity_max_mps, np.float32)
    earth[:3] = a.velocity_min_mps
    whole = model(earth[None], a, fastest_mps=np.inf)[0]
    followed = model_gathers(earth[None, None], a, "openfwi")[0]
    assert relative(followed, whole) < 5e-6
    reached = [np.sum(np.diff(one.rows)) for one in shots(a, 4500.0, a.n_time)]
    assert sum(reached) < 0.8 * a.n_time * (24 + 2 * PAD_CELLS)


def test_the_wavelet_is_the_benchmarks():
    wavelet = ricker(FULL)
    assert wavelet.argmax() == 73
    assert wavelet.max() == pytest.approx(1.0)
    assert np.flatnonzero(wavelet).max() == 146
    # The mean over a Ricker's support nearly vanishes: it carries no constant pressure.
    assert abs(wavelet.sum()) < 0.02 * np.abs(wavelet).sum()


@pytest.fixture(scope="module")
def uniform():
    """A homogeneous earth of 2500 m/s, shot at the left end."""
    a = survey(n_time=450, source_cells=[0])
    earth = np.full((1, *a.map_shape), 2500.0, np.float32)
    return a, model_gathers(earth, a, "openfwi")[0, 0]


def test_direct_wave_arrives_when_it_should(uniform):
    """Between receivers 30 and 60, 300 m apart, the wave takes 300 m / 2500 m/s."""
    _, gather = uniform
    near, far = gather[:, 30], gather[:, 60]
    lags = np.arange(60, 181)
    match = [float((near[: 450 - lag] * far[lag:]).sum()) for lag in lags]
    assert lags[int(np.argmax(match))] == pytest.approx(120, abs=2)


def test_direct_wave_has_the_amplitude_of_the_greens_function(uniform):
    """p = dx^2 w * H(t - r/v) / (2 pi sqrt(t^2 - r^2/v^2)), the exact answer for a line source in 2-D."""
    a, gather = uniform
    fine = 20
    dt_s, n = a.dt_s / fine, 300 * fine
    t_s = np.arange(n + 1) * dt_s
    wavelet = np.interp(t_s[:n], np.arange(a.n_time) * a.dt_s, ricker(a))
    for cells in (10, 20, 30, 40, 50):
        delay_s = cells * a.dx_m / 2500.0
        # Integrated over a step, the singularity at the arrival is harmless.
        integral = np.arccosh(np.maximum(t_s / delay_s, 1.0)) / (2 * np.pi)
        pressure = a.dx_m**2 * np.convolve(wavelet, np.diff(integral))[:n]
        # Sample n is the pressure one step after w[n] went in.
        assert relative(gather[:300, cells], pressure[fine - 1 :: fine]) < 0.02


def test_reciprocity():
    """Source and receiver change places; the trace, per unit of source strength v^2, is the same."""
    velocity = generate_map("curvefault_a", 2, 0, FULL)[None]
    ends = survey(n_time=400, source_cells=[5, 60])
    gather = model_gathers(velocity, ends, "openfwi")[0]
    strength = velocity[0, 0, ends.source_row, [5, 60]] ** 2
    assert relative(gather[0, :, 60] / strength[0], gather[1, :, 5] / strength[1]) < 1e-5


PAIR = Path(__file__).parents[2].parent / "shared" / "genuine" / "pair.npz"


@pytest.mark.skipif(not PAIR.exists(), reason="a genuine OpenFWI pair is not at hand")
def test_the_openfwi_engine_makes_a_genuine_gather_of_its_map():
    pair = np.load(PAIR)
    ours = model_gathers(pair["velocity_mps"][None], FULL, "openfwi")[0]
    # The last row of the file is zero.
    assert relative(ours[:, :999], pair["gather"][:, :999]) < 3e-5
    assert relative(ours[:, 700:999], pair["gather"][:, 700:999]) < 2e-4


def test_a_wave_that_leaves_at_one_side_comes_in_at_the_other():
    """In a fast earth the way around the periodic grid is within the record; zeros outside would reflect."""
    a = survey(n_time=1000, source_cells=[60], receiver_cells=[5], device_receivers=[[0]])
    earth = np.full((1, *a.map_shape), 5500.0, np.float32)
    gather, expected = model_gathers(earth, a, "openfwi")[0, 0], reference(earth[0, 0], a)[0]
    assert relative(gather, expected) < 1e-4
    assert relative(gather[400:], expected[400:]) < 1e-3


def _real_gather() -> Path:
    return Path(
        os.environ.get(
            "EPIC_REAL_GATHER",
            Path(__file__).parents[2].parent / "shared" / "real" / "openfwi_gather.npy",
        )
    )


@pytest.mark.skipif(not _real_gather().exists(), reason="a genuine OpenFWI gather is not at hand")
def test_a_genuine_gather_starts_as_the_scheme_says():
    """The first 50 ms at each source see only the velocity beneath it, read off the gather itself."""
    from scipy.optimize import minimize_scalar

    genuine = np.load(_real_gather()).astype(np.float32)
    for shot, cell in enumerate(FULL.source_cells):
        a = survey(n_time=50, source_cells=[cell])
        trace = genuine[shot, :50, cell]

        def error(velocity_mps, a=a, cell=cell, trace=trace):
            earth = np.full((1, *a.map_shape), velocity_mps, np.float32)
            return relative(model_gathers(earth, a, "openfwi")[0, 0, :, cell], trace)

        found = minimize_scalar(error, bounds=(1500, 4500), method="bounded", options={"xatol": 0.2})
        assert found.fun < 1e-3, f"source {shot}: {found.fun:.1e} at {found.x:.0f} m/s"


@pytest.mark.parametrize(
    ("shape", "value", "engine", "message"),
    [
        ((1, 70, 70), 2000, "openfwi", r"expected maps \(n, 1, 70, 70\), got \(1, 70, 70\)"),
        ((0, 1, 70, 70), 2000, "openfwi", "at least one map"),
        ((1, 1, 70, 70), np.nan, "openfwi", "finite, positive"),
        ((1, 1, 70, 70), -1, "openfwi", "finite, positive"),
        ((1, 1, 70, 70), 6200, "openfwi", r"at most 6124 m/s for steps of 1 ms on 10 m, got 6200"),
        ((1, 1, 70, 70), 2000, "devito", "expected engine openfwi, cuda; got 'devito'"),
    ],
)
def test_maps_that_cannot_be_modelled(shape, value, engine, message):
    with pytest.raises(ModellingError, match=message):
        model_gathers(np.full(shape, value, np.float32), FULL, engine)
