"""The CUDA kernel, run on the host thread by thread, against the benchmark's scheme."""

import ctypes
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from physics.acquisition import Acquisition
from physics.engines import cuda as engine_cuda
from physics.engines import openfwi as engine_openfwi
from physics.errors import ModellingError
from physics.families import generate_map

pytestmark = pytest.mark.slow

SURVEY = Acquisition.openfwi()


@pytest.fixture(scope="module")
def on_host(tmp_path_factory):
    """``record(maps, acquisition, average)`` by the kernel's own text, compiled for this processor."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    folder = tmp_path_factory.mktemp("kernel")

    def record(maps, acquisition, average=1):
        layout = engine_cuda.lay_out(acquisition)
        library = folder / f"{acquisition.n_depth}x{acquisition.n_width}.so"
        if not library.exists():
            source = Path(__file__).with_name("cuda_on_host.cpp")
            command = [compiler, "-O2", "-shared", "-fPIC", f"-I{engine_cuda.KERNEL.parent}"]
            subprocess.run([*command, *layout.definitions(), str(source), "-o", str(library)], check=True)
        values = engine_cuda.arguments(maps, acquisition, average)
        a = acquisition
        values["record"] = np.full(
            (len(maps), a.n_time // average, a.n_receivers, a.n_sources), np.nan, np.float32
        )
        kinds = {"float32": ctypes.c_float, "int32": ctypes.c_int}
        passed = [
            value.ctypes.data_as(ctypes.c_void_p)
            if isinstance(value, np.ndarray)
            else kinds[value.dtype.name](value)
            for value in values.values()
        ]
        ctypes.CDLL(str(library)).run_on_host(len(maps) * a.n_sources, *passed)
        return values["record"]

    return record


def test_the_kernel_records_what_the_benchmarks_scheme_does(on_host):
    survey = replace(SURVEY, source_cells=(0, 41))
    maps = np.concatenate([generate_map("curvefault_b", 5, 0, survey), generate_map("style_a", 5, 1, survey)])
    recorded = on_host(maps, survey).transpose(0, 3, 1, 2)
    expected = engine_openfwi.model(maps, survey)
    assert np.abs(recorded - expected).max() < 1e-4 * np.abs(expected).max()
    # What comes late is weak: it must be right by its own measure, not beside the direct wave.
    late, expected_late = recorded[:, :, 700:], expected[:, :, 700:]
    assert np.linalg.norm(late - expected_late) < 1e-3 * np.linalg.norm(expected_late)


def test_averaged_samples_are_the_means_of_the_record(on_host):
    survey = replace(
        SURVEY,
        n_time=203,
        source_cells=(30,),
        receiver_cells=tuple(range(4, 60)),
        device_receivers=Acquisition.split_evenly(56, 5),
    )
    maps = generate_map("flatvel_b", 5, 3, survey)
    whole, means = on_host(maps, survey), on_host(maps, survey, average=5)
    assert means.shape == (1, 40, 56, 1)
    expected = whole[:, :200].reshape(1, 40, 5, 56, 1).mean(axis=2)
    np.testing.assert_allclose(means, expected, atol=1e-5 * np.abs(expected).max())


def test_a_shot_takes_the_smallest_cluster_that_holds_it():
    layout = engine_cuda.lay_out(SURVEY)
    assert (layout.cluster, layout.threads) == (4, 960)
    assert 4 * layout.shared_floats <= engine_cuda.SHARED_BYTES
    assert layout.cluster * layout.groups * layout.rows >= 310


def test_surveys_that_the_kernel_cannot_hold_are_refused():
    wide = replace(SURVEY, n_width=900)
    with pytest.raises(ModellingError, match="too large, take engine openfwi"):
        engine_cuda.lay_out(wide)
    sparse = replace(
        SURVEY, receiver_cells=tuple(range(0, 70, 2)), device_receivers=Acquisition.split_evenly(35, 5)
    )
    with pytest.raises(ModellingError, match="neighbouring cells"):
        engine_cuda.arguments(np.full((1, 70, 70), 2000.0), sparse, 1)
