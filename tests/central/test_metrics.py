"""What Prometheus is told, in its own format, read with its own parser."""

import json
import socket
import threading
import urllib.request
from collections import Counter
from contextlib import closing

import pytest
from fake_decoder import MODEL_HASH, FakeDecoder, latent_record
from prometheus_client.parser import text_string_to_metric_families
from waiting import wait_until

from central.config import CentralConfig, ConfigError, load_config
from central.dashboard.metrics import (
    MetricsError,
    MetricsServer,
    RuntimeMetrics,
    decode_histogram,
    metrics_text,
)
from central.service import Service
from central.storage.database import connect
from central.storage.journal import Journal
from firmware_py.runtime.log import Log, now_us


def samples(text):
    """Value by (name, labels as a sorted tuple)."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def of_device(found, name, device=2):
    return found.get((f"epic_device_{name}", (("device", str(device)), ("survey", "1"))))


@pytest.fixture
def live():
    return RuntimeMetrics(
        Counter(records=7),
        Counter(partial=2),
        lambda: 3,
        lambda: {"tcp": Counter(records=5)},
        decode_histogram(),
        Counter(checked=4, failed=1),
    )


def test_devices_are_told_as_the_centre_knows_them(data_dir, live):
    at_us = now_us()
    with closing(Journal(data_dir)) as journal:
        record = latent_record(device=2, sequence=1, sample_time_us=at_us - 4_000_000)
        journal.commit([(record, at_us - 1_000_000, 60)])
    with closing(connect(data_dir)) as database:
        status = json.dumps(
            {"temperature_mc": 41_250, "waiting": 4, "dropped": 2, "rejected": 6, "board": 'a "board"\n\\'}
        )
        database.execute("INSERT INTO device VALUES (1, 2, ?, 100, 50, 2, 'why', ?)", (at_us, status))
    found = samples(metrics_text(data_dir, None))
    assert of_device(found, "last_seen_timestamp_seconds") == pytest.approx(at_us / 1e6)
    assert of_device(found, "lag_seconds") == 3.0
    assert of_device(found, "records_total") == 1
    assert of_device(found, "received_bytes_total") == 100
    assert (of_device(found, "temperature_celsius"), of_device(found, "queue_records")) == (41.25, 4)
    assert of_device(found, "rejected_recordings_total") == 6
    assert of_device(found, "clock_offset_seconds") is None, "it has not said"
    states = {
        dict(labels)["epic_device_state"]: v for (n, labels), v in found.items() if n == "epic_device_state"
    }
    assert states == {"on time": 1, "late": 0, "silent": 0, "never seen": 0, "revoked": 0}
    (info,) = [dict(labels) for name, labels in found if name == "epic_device_info"]
    assert (info["model_hash"], info["board"]) == (MODEL_HASH.hex(), 'a "board"\\n\\')
    assert not any(name.startswith("epic_receiver") for name, _ in found), "no centre runs here"


def test_a_running_centre_tells_what_it_counts(data_dir, live):
    live.decode_s.observe(0.003)
    found = samples(metrics_text(data_dir, live))
    assert found["epic_receiver_records_total", ()] == 7
    assert found["epic_maps_total", (("kind", "partial"),)] == 2
    assert found["epic_backlog_records", ()] == 3
    assert found["epic_checks_total", (("kind", "checked"),)] == 4
    assert found["epic_checks_total", (("kind", "failed"),)] == 1
    assert found["epic_line_total", (("line", "tcp"), ("what", "records"))] == 5
    assert found["epic_decode_seconds_bucket", (("le", "0.005"),)] == 1
    assert found["epic_decode_seconds_bucket", (("le", "0.0025"),)] == 0


def test_a_file_that_cannot_be_read_is_told(tmp_path, live):
    found = samples(metrics_text(tmp_path, live))
    assert found["epic_store_up", ()] == 0
    assert found["epic_receiver_records_total", ()] == 7


def test_an_address_in_use_is_one_clear_line(data_dir, live):
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(MetricsError, match=f"{address}: metrics cannot be served there"):
            MetricsServer(address, data_dir, live)


def test_only_this_machine_is_told(tmp_path):
    path = tmp_path / "central.toml"
    path.write_text(
        '[central]\nlisten = "tcp://127.0.0.1:1"\ninsecure = true\ndata_dir = "data"\nmetrics_listen = "0.0.0.0:9108"\n'
        '[[model]]\nbundle = "-"\ndecoder = "-"\n'
    )
    with pytest.raises(ConfigError, match=r"central.metrics_listen: only on loopback"):
        load_config(path)


def test_prometheus_asks_a_centre_at_work(tmp_path, dealers):
    central = {
        "listen": "tcp://127.0.0.1:*",
        "data_dir": tmp_path / "data",
        "pictures": False,
        "metrics_listen": "127.0.0.1:0",
    }
    config = CentralConfig.model_validate({"central": central, "model": [{"bundle": "-", "decoder": "-"}]})
    service = Service(config, {MODEL_HASH: FakeDecoder()}, Log(tmp_path / "central.jsonl"))
    thread = threading.Thread(target=service.run)
    thread.start()
    address = f"http://127.0.0.1:{service.metrics.port}/metrics"

    def told():
        with urllib.request.urlopen(address, timeout=20) as answer:
            return samples(answer.read())

    try:
        for device in range(FakeDecoder.n_devices):
            dealer = dealers(service.receiver.endpoint)
            dealer.send(latent_record(device=device))
            assert dealer.answer()
        wait_until(lambda: told()["epic_maps_total", (("kind", "complete"),)] == 1, 60, "the map")
        found = told()
        assert found["epic_receiver_records_total", ()] == FakeDecoder.n_devices
        assert found["epic_decode_seconds_count", ()] == 1
        assert of_device(found, "records_total", 4) == 1
    finally:
        service.stop()
        thread.join()
    with pytest.raises(OSError):
        told()
