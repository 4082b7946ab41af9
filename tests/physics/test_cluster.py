"""Work on a Dask cluster: all of it, once, with the same data sets as on one process."""

import json
import math
import time

import numpy as np
import pytest
from dask_cluster import two_processes
from small_survey import MODELLED_SURVEY as SURVEY

import epic
import physics.dataset
from physics.cluster import ClusterError, on_cluster
from physics.dataset import DatasetRequest, generate_dataset

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scheduler():
    with two_processes() as address:
        yield address


def test_every_item_is_worked_once(scheduler):
    found = list(on_cluster(scheduler, abs, range(-50, 0)))
    assert sorted(found) == sorted((n, -n) for n in range(-50, 0))


def test_what_the_work_raises_comes_back(scheduler):
    with pytest.raises(ValueError, match="math domain error"):
        list(on_cluster(scheduler, math.sqrt, [4.0, -1.0]))


@pytest.mark.parametrize(
    ("address", "said"),
    [("tcp://127.0.0.1:9", "no Dask scheduler answers"), ("carrier-pigeon", "no Dask scheduler answers")],
)
def test_without_a_scheduler_it_says_so(monkeypatch, address, said):
    pytest.importorskip("distributed", reason="the extra cluster is not installed")
    monkeypatch.setattr("physics.cluster.CONNECT_S", 0.5)
    with pytest.raises(ClusterError, match=said) as caught:
        list(on_cluster(address, abs, [1]))
    assert "\n" not in str(caught.value)


def test_a_data_set_is_the_same_on_a_cluster_and_on_one_process(tmp_path, monkeypatch, scheduler):
    monkeypatch.setattr(physics.dataset, "CHUNK_SAMPLES", 2)
    told = []
    for out, where in ((tmp_path / "one", None), (tmp_path / "many", scheduler)):
        generate_dataset(
            DatasetRequest(("flatvel_a", "curvefault_b"), 5, 4, SURVEY),
            out,
            scheduler=where,
            on_progress=lambda done, total: told.append((done, total)),
        )
    one, many = (
        {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.npy"))}
        for out in (tmp_path / "one", tmp_path / "many")
    )
    assert len(one) == 4 and one == many
    assert told[-1] == (10, 10)
    assert not (tmp_path / "many" / ".parts").exists()


def test_the_command_models_on_the_cluster(tmp_path, scheduler, capsys):
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"acquisition": SURVEY.to_dict()}))
    command = ["data", "generate", "flatvel_a", "--count", "2", "--json"]
    command += ["--survey", str(manifest), "--out", str(tmp_path / "set"), "--scheduler", scheduler]
    assert epic.main(command) == 0
    (file,) = json.loads(capsys.readouterr().out)["files"]
    assert np.load(file).shape == (2, *SURVEY.gather_shape)


def test_a_scheduler_that_goes_away_is_one_line():
    """A worker's own process would outlive a scheduler that is killed: here both go."""
    distributed = pytest.importorskip("distributed", reason="the extra cluster is not installed")
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, silence_logs=50
    )
    results = on_cluster(cluster.scheduler_address, time.sleep, [0.01] * 1000)
    assert next(results) == (0.01, None)
    cluster.close()
    with pytest.raises(ClusterError, match="went away, or lost its workers") as caught:
        list(results)
    assert "\n" not in str(caught.value)
