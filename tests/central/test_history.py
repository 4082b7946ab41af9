"""The history of devices: its samples, their age limits, and that its faults do not stop the centre."""

import threading
from contextlib import closing

import pytest
from fake_decoder import latent_record
from waiting import wait_until

from central.fleet import history as module
from central.fleet.history import SPANS, HistoryKeeper, Sample, read_history
from central.storage.database import StoreError
from central.storage.journal import Journal
from firmware_py.runtime.log import Log

T0_S = 1_800_000_000 - 1_800_000_000 % SPANS["months"].step_s


@pytest.fixture
def keeper(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "now_us", lambda: T0_S * 1_000_000)
    return HistoryKeeper(data_dir, Log(tmp_path / "log.jsonl"))


@pytest.fixture
def receive(data_dir):
    """Store a record of device 1 that arrives at ``at_s``, ``lag_s`` after its recording."""
    sequence = iter(range(1, 10_000))

    def commit(at_s, lag_s, device=1):
        at_us = int(at_s * 1e6)
        record = latent_record(device, sequence=next(sequence), sample_time_us=at_us - int(lag_s * 1e6))
        with closing(Journal(data_dir)) as journal:
            journal.commit([(record, at_us, 60)])

    return commit


def samples(data_dir, span, device=1):
    return list(read_history(data_dir, 1, device, SPANS[span]))


def test_a_step_has_the_longest_latency_of_its_records(data_dir, keeper, receive):
    for at_s, lag_s in ((1, 0.2), (3, 1.5), (7, 0.1)):
        receive(T0_S + at_s, lag_s)
    keeper.sample((T0_S + 8) * 1_000_000)
    receive(T0_S + 12, 0.4)
    keeper.sample((T0_S + 18) * 1_000_000)
    assert samples(data_dir, "hour") == [Sample(T0_S, 1500, 0, None), Sample(T0_S + 10, 400, 0, None)]
    assert samples(data_dir, "days") == [Sample(T0_S, 1500, 0, None)]
    assert samples(data_dir, "months") == [Sample(T0_S, 1500, 0, None)]


def test_silence_is_a_gap_and_what_came_before_the_start_is_not_told_again(data_dir, receive, tmp_path):
    receive(T0_S - 5, 9.0)
    keeper = HistoryKeeper(data_dir, Log(tmp_path / "log.jsonl"))
    keeper._sampled_us = T0_S * 1_000_000
    keeper.sample((T0_S + 10) * 1_000_000)
    assert samples(data_dir, "hour") == []
    receive(T0_S + 95, 0.25)
    keeper.sample((T0_S + 100) * 1_000_000)
    assert samples(data_dir, "hour") == [Sample(T0_S + 100, 250, 0, None)]


def test_a_history_is_bounded(data_dir, keeper, receive):
    for hour in range(60):
        receive(T0_S + 3600 * hour, 0.1)
        keeper.sample((T0_S + 3600 * hour + 1) * 1_000_000)
    last_s = T0_S + 3600 * 59
    assert [one.at_s for one in samples(data_dir, "hour")] == [last_s - 3600, last_s]
    assert samples(data_dir, "days")[0].at_s == last_s - 2 * 86_400
    assert len(samples(data_dir, "months")) == 20


def test_a_flood_of_records_is_not_read_whole(data_dir, keeper, receive, monkeypatch):
    monkeypatch.setattr(module, "MAX_RECORDS", 2)
    for lag_s in (5.0, 0.3, 0.2):
        receive(T0_S + 1, lag_s)
    keeper.sample((T0_S + 2) * 1_000_000)
    assert samples(data_dir, "hour") == [Sample(T0_S, 300, 0, None)]


def test_a_damaged_history_is_said_once_and_may_be_removed(data_dir, keeper, receive, tmp_path, monkeypatch):
    path = data_dir / module.FILE_NAME
    path.write_bytes(b"no database" * 100)
    with pytest.raises(StoreError, match="it may be removed"):
        read_history(data_dir, 1, 1, SPANS["hour"])
    monkeypatch.setattr(module, "EVERY_S", 0.01)
    stop = threading.Event()
    watching = threading.Thread(target=keeper.watch, args=(stop,))
    monkeypatch.setattr(module, "now_us", lambda: (T0_S + 5) * 1_000_000)
    watching.start()
    log = tmp_path / "log.jsonl"
    wait_until(lambda: log.exists() and "history_failed" in log.read_text(), what="complaint")
    receive(T0_S + 3, 0.2)
    path.unlink()
    stop.set()
    watching.join()
    assert log.read_text().count("history_failed") == 1
    assert samples(data_dir, "hour") == [Sample(T0_S, 200, 0, None)]
