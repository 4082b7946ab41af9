"""A Dask cluster of processes on this machine, for tests."""

import contextlib

import pytest


@contextlib.contextmanager
def two_processes():
    """Address of the scheduler of two workers with one thread each; skips without Dask."""
    distributed = pytest.importorskip("distributed", reason="the extra cluster is not installed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as cluster:
        yield cluster.scheduler_address
