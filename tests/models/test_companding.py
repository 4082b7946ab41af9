import numpy as np
import pytest

from models.data.companding import TOLERANCE_DB, CompandingError, choose_companding


def decaying_gathers(decay_db, seed=0):
    """Noise that fades by ``decay_db`` from the first sample to the last: ``(2, 2, 200, 6)``."""
    noise = np.random.default_rng(seed).normal(size=(2, 2, 200, 6))
    fade = 10 ** (-decay_db / 20 * np.linspace(0, 1, 200))
    return (10 * noise * fade[:, None]).astype(np.float32)


def test_c_spans_the_loudest_thinned_sample():
    gathers = decaying_gathers(40)
    companding, report = choose_companding(gathers, decimation=4)
    loudest = np.abs(gathers.reshape(2, 2, 50, 4, 6).mean(axis=3)).max()
    assert report["peak"] == pytest.approx(loudest, rel=1e-5)
    assert companding.c == pytest.approx(np.arcsinh(companding.k * loudest), rel=1e-6)
    assert companding.thin == 4


def test_the_chosen_k_is_the_smallest_that_is_good_enough():
    companding, report = choose_companding(decaying_gathers(60), decimation=1)
    best_db = max(entry["mean_db"] for entry in report["candidates"])
    for entry in report["candidates"]:
        if entry["k"] < companding.k:
            assert entry["mean_db"] < best_db - TOLERANCE_DB
        if entry["k"] == companding.k:
            assert entry["mean_db"] >= best_db - TOLERANCE_DB
    assert companding.k == report["chosen_k"]


def test_a_strong_fade_asks_for_more_compression_than_none():
    flat, _ = choose_companding(decaying_gathers(0), decimation=1)
    faded, _ = choose_companding(decaying_gathers(60), decimation=1)
    assert faded.k > flat.k


def test_companding_beats_a_nearly_linear_code_where_the_signal_fades():
    _, report = choose_companding(decaying_gathers(60), decimation=1, candidates_k=(0.001, 50.0))
    linear, companded = report["candidates"]
    assert companded["worst_window_db"] > linear["worst_window_db"] + 20
    assert report["chosen_k"] == 50.0


def test_windows_of_silence_do_not_count():
    gathers = decaying_gathers(20)
    quiet = gathers.copy()
    quiet[:, :, :100] = 0
    _, report = choose_companding(quiet, decimation=1)
    assert report["windows"] == 5


@pytest.mark.parametrize(
    ("gathers", "said"),
    [
        (np.zeros((2, 2, 200, 6), np.float32), "every sample is zero"),
        (
            np.zeros((2, 200, 6), np.float32),
            r"expected \(n, sources, samples, receivers\), got \(2, 200, 6\)",
        ),
        (np.full((1, 2, 200, 6), np.nan, np.float32), "expected finite samples"),
        (np.zeros((0, 2, 200, 6), np.float32), "expected"),
    ],
)
def test_gathers_that_say_nothing_are_refused(gathers, said):
    with pytest.raises(CompandingError, match=said):
        choose_companding(gathers, decimation=1)


def test_a_k_of_zero_is_refused():
    with pytest.raises(CompandingError, match="candidates_k"):
        choose_companding(decaying_gathers(10), decimation=1, candidates_k=(0.0, 1.0))
