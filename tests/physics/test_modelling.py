"""Physics: the scheme against its equations, waves against their laws, engines against each other."""

import os
from pathlib import Path

import numpy as np
import pytest

from physics.acquisition import Acquisition
from physics.engine_openfwi import PAD_CELLS
from physics.families import generate_map
from physics.modelling import ModellingError, model_gathers
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
            q = np.pad(now, 2)
            first = q[1:-3, 2:-2] + q[3:-1, 2:-2] + q[2:-2, 1:-3] + q[2:-2, 3:-1]
            second = q[:-4, 2:-2] + q[4:, 2:-2] + q[2:-2, :-4] + q[2:-2, 4:]
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
    assert relative(ours, reference(velocity[0, 0], SMALL)) < 1e-4


def test_the_wavelet_is_the_benchmarks():
    wavelet = ricker(FULL)
    assert wavelet.argmax() == 73
    assert wavelet.max() == pytest.approx(1.0)
    assert np.flatnonzero(wavelet).max() == 146
    # The mean over a Ricker's support nearly vanishes: it carries no constant pressure.
    assert abs(wavelet.sum()) < 0.02 * np.abs(wavelet).sum()


@pytest.fixture(scope="module")
def uniform():
    """A homogeneous earth of 2500 m/s, shot at the left end, both engines."""
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


def test_direct_wave_decays_as_a_line_sources_should(uniform):
    """In two dimensions the far field falls with the square root of distance (Green's function)."""
    _, gather = uniform
    peaks = np.abs(gather[:, [20, 40, 60]]).max(axis=0)
    np.testing.assert_allclose(peaks * np.sqrt([20, 40, 60]) / (peaks[0] * np.sqrt(20)), 1.0, rtol=0.03)


def test_reciprocity():
    """Source and receiver change places; the trace, per unit of source strength v^2, is the same."""
    velocity = np.concatenate([generate_map("curvefault_a", 2, 0, FULL)[None]])
    ends = survey(n_time=400, source_cells=[5, 60])
    gather = model_gathers(velocity, ends, "openfwi")[0]
    strength = velocity[0, 0, ends.source_row, [5, 60]] ** 2
    assert relative(gather[0, :, 60] / strength[0], gather[1, :, 5] / strength[1]) < 2e-3


def test_engines_agree_before_the_edges_are_heard():
    pytest.importorskip("deepwave", reason="needs the physics extra")
    velocity = generate_map("curvefault_a", 2, 1, FULL)[None]
    a = survey(n_time=300)
    assert relative(model_gathers(velocity, a, "deepwave"), model_gathers(velocity, a, "openfwi")) < 0.02


def test_the_gradient_is_that_of_finite_differences():
    """The engine is differentiable: what refinement of a map stands on."""
    import tensorflow as tf

    from physics.engine_openfwi import record

    a = survey(
        n_depth=8,
        n_width=10,
        n_time=90,
        source_cells=[2],
        receiver_cells=[1, 5, 8],
        device_receivers=[[0, 1, 2]],
    )
    rng = np.random.default_rng(0)
    velocity = (2000 + 300 * rng.random((8, 10))).astype(np.float32)
    observed = np.asarray(record(velocity * 1.03, a))

    def misfit(v):
        return tf.reduce_sum(tf.square(record(v, a) - observed))

    variable = tf.Variable(velocity)
    with tf.GradientTape() as tape:
        value = misfit(variable)
    gradient = tape.gradient(value, variable).numpy()
    direction = rng.normal(size=velocity.shape).astype(np.float32)
    step = 2.0
    difference = (misfit(velocity + step * direction) - misfit(velocity - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(float(difference), rel=0.02)


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
        ((1, 1, 70, 70), np.nan, "openfwi", "finite, positive"),
        ((1, 1, 70, 70), -1, "openfwi", "finite, positive"),
        ((1, 1, 70, 70), 2000, "devito", "expected engine openfwi or deepwave, got 'devito'"),
    ],
)
def test_maps_that_cannot_be_modelled(shape, value, engine, message):
    with pytest.raises(ModellingError, match=message):
        model_gathers(np.full(shape, value, np.float32), FULL, engine)
