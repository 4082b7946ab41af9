"""``epic central`` as an operator meets it."""

import json
import os
import signal
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest
from fake_decoder import MODEL_HASH, SURVEY, latent_record
from page_maps import put_map
from waiting import wait_until

import epic
from central import cli
from central.storage.journal import Journal


@pytest.fixture
def config(tmp_path, data_dir):
    """A central.toml beside the store."""
    path = tmp_path / "central.toml"
    path.write_text(
        f'[central]\nlisten = "tcp://127.0.0.1:*"\ninsecure = true\ndata_dir = "{data_dir.name}"\n'
        '[[model]]\nbundle = "bundle"\ndecoder = "decoder"\n'
    )
    return path


def central(*arguments) -> int:
    return epic.main(["central", *map(str, arguments)])


def complaint(capsys) -> str:
    """The one line on standard error."""
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith("error: ")
    return line


def test_list_as_json_says_what_each_newest_map_is(config, fill, capsys):
    for event in (7, 3):
        fill(event=event)
    fill(event=3, survey=2)
    assert central("list", "--config", config, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["survey"], row["event"]) for row in rows] == [(1, 7), (1, 3), (2, 3)], "as they were decoded"
    velocity = fill(event=3).velocity_mps
    assert rows[1] == {
        "survey": 1,
        "event": 3,
        "revision": 1,
        "partial": False,
        "devices": [0, 1, 2, 3, 4],
        "model_hash": MODEL_HASH.hex(),
        "sampled": "2023-11-14T22:13:20.000001+00:00",
        "received_bytes": 280,
        "velocity_mean_mps": round(float(velocity.mean()), 1),
        "uncertainty_mean_mps": 1.0,
    }
    assert central("list", "--config", config, "--survey", "2", "--json") == 0
    assert [row["survey"] for row in json.loads(capsys.readouterr().out)] == [2]


def test_list_for_people_has_a_line_an_event_and_fits_80_columns(config, fill, capsys, monkeypatch):
    fill(event=31)
    summary = cli._summary
    monkeypatch.setattr(cli, "_summary", lambda stored: {**summary(stored), "partial": True})
    monkeypatch.setenv("COLUMNS", "80")
    assert central("list", "--config", config) == 0
    shown = capsys.readouterr().out
    (row,) = (line.split() for line in shown.splitlines() if " 31 " in line)
    assert row[:2] == ["1", "31"] and row[3:5] == ["0,1,2,3,4", "(partial)"] and row[-1].count(":") == 1
    assert max(map(len, shown.splitlines())) <= 80 and "omitted" not in shown


def test_list_of_an_empty_store_is_empty(config, capsys):
    assert central("list", "--config", config, "--json") == 0
    assert json.loads(capsys.readouterr().out) == []
    assert central("list", "--config", config) == 0
    assert capsys.readouterr().out == "no map yet\n"


def test_show_adds_the_provenance(config, fill, capsys):
    stored = fill(event=7)
    for arguments in (["--json"], []):
        assert central("show", 7, "--config", config, *arguments) == 0
        shown = capsys.readouterr().out
        if arguments:
            assert json.loads(shown)["provenance"] == stored.provenance
        else:
            lines = [line.strip() for line in shown.splitlines()]
            assert {f"n_depth: {SURVEY.n_depth}", "receiver_cells: 70 of them; --json has all"} <= set(lines)
            assert len(lines) < 50, "no line for each receiver of each device"


def test_export_writes_the_map(config, fill, tmp_path, capsys):
    stored = fill(event=7)
    out = tmp_path / "map.npy"
    assert central("export", 7, "--config", config, "--format", "npy", "--out", out) == 0
    assert str(out) in capsys.readouterr().out
    np.testing.assert_array_equal(np.load(out)[0], stored.velocity_mps)
    assert central("export", 7, "--config", config, "--out", tmp_path / "map.nc") == 0
    assert (tmp_path / "map.nc").read_bytes().startswith(b"\x89HDF")


@pytest.mark.parametrize("command", [["show"], ["export", "--out", "map.nc"]])
def test_an_event_that_is_not_there_is_one_line_with_what_is(config, fill, capsys, command):
    fill(event=7)
    assert central(*command, 8, "--config", config) == 2
    assert complaint(capsys) == "error: event 8: not in the store, which holds 1 events from 7 to 7"


def test_an_event_of_several_surveys_asks_for_one(config, fill, capsys):
    fill(event=7, survey=1)
    fill(event=7, survey=2)
    assert central("show", 7, "--config", config) == 2
    assert "name one with --survey" in complaint(capsys)
    assert central("show", 7, "--config", config, "--survey", 2, "--json") == 0
    assert json.loads(capsys.readouterr().out)["survey"] == 2


@pytest.mark.parametrize("command", [["run"], ["list"], ["show", 1], ["export", 1, "--out", "x"]])
def test_a_broken_configuration_is_one_line_that_names_the_key(config, capsys, command):
    config.write_text(config.read_text().replace("listen", "lissten"))
    assert central(*command, "--config", config) == 2
    assert f"{config}: line 2: [central] unknown key 'lissten'; did you mean 'listen'?" in complaint(capsys)


@pytest.mark.parametrize("command", [["list"], ["show", 1], ["export", 1, "--out", "x"]])
def test_a_centre_that_never_ran_is_one_line(config, capsys, command):
    config.write_text(config.read_text().replace('data_dir = "data"', 'data_dir = "elsewhere"'))
    assert central(*command, "--config", config) == 2
    assert "elsewhere/central.sqlite: not found" in complaint(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--format", "geotiff", "--out", "x"],
            "expected one of npy, netcdf, zarr, segy, png; got 'geotiff'",
        ),
        (["--out", "nowhere/x.nc"], "no such folder nowhere"),
        (["--format", "npy", "--out", "."], "is a folder"),
        (["--format", "netcdf", "--out", "map.png"], "its suffix is not one of netcdf"),
    ],
)
def test_an_export_that_cannot_be_is_one_line(config, fill, capsys, arguments, message):
    fill(event=7)
    assert central("export", 7, "--config", config, *arguments) == 2
    assert message in complaint(capsys)


@pytest.mark.parametrize("event", [-1, 1 << 32, 1 << 70, "seven"])
def test_an_event_that_no_record_can_have_is_wrong_use(config, capsys, event):
    assert central("show", "--config", config, "--", event) == 2
    shown = capsys.readouterr().err
    assert "Invalid value for 'event'" in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "bundle/manifest.json: not found"),
        ('log = "central.toml/log"\n', "central.log: "),
    ],
)
def test_run_that_cannot_start_is_one_line(config, line, message):
    """In a process of its own: it imports TensorFlow."""
    config.write_text(config.read_text().replace("[[model]]", f"{line}[[model]]"))
    ended = subprocess.run(
        [sys.executable, "-m", "epic", "central", "run", "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("error: ")
    assert message in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


RUN_WITH_A_FAKE_DECODER = """
import sys, types
import central.pipeline.decoders
from fake_decoder import MODEL_HASH, FakeDecoder
import epic
decoders = types.ModuleType("models.inversion.decoder")
decoders.DecoderError = ValueError
sys.modules["models.inversion.decoder"] = decoders
central.pipeline.decoders.load_models = lambda config: {MODEL_HASH: FakeDecoder()}
sys.exit(epic.main(["central", "run", "--config", sys.argv[1]]))
"""


@pytest.fixture
def run_centre(config):
    """Starts ``epic central run`` with a fake decoder in a process of its own."""
    started = []

    def start() -> subprocess.Popen:
        path = os.pathsep.join(sys.path)
        command = [sys.executable, "-c", RUN_WITH_A_FAKE_DECODER, str(config)]
        pipe = subprocess.PIPE
        started.append(
            subprocess.Popen(
                command, env={**os.environ, "PYTHONPATH": path}, stdout=pipe, stderr=pipe, text=True
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_run_well(config, run_centre, number, tmp_path):
    config.write_text(config.read_text().replace("[[model]]", 'log = "log.jsonl"\n[[model]]'))
    process = run_centre()
    log = tmp_path / "log.jsonl"
    wait_until(lambda: log.exists() and '"ready"' in log.read_text(), timeout_s=60, what="ready")
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert "listening on tcp://127.0.0.1:" in out
    assert '"stopped"' in log.read_text()


def test_run_on_a_port_in_use_is_one_line(config, run_centre):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config.write_text(config.read_text().replace(":*", f":{port}"))
        process = run_centre()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    (line,) = err.splitlines()
    assert line.startswith(f"error: tcp://127.0.0.1:{port}: cannot listen there")


def test_looking_at_the_store_imports_no_tensorflow(config, fill):
    fill(event=7)
    code = (
        "import sys, epic\n"
        f"assert epic.main(['central', 'list', '--config', {str(config)!r}]) == 0\n"
        f"assert epic.main(['central', 'show', '7', '--config', {str(config)!r}]) == 0\n"
        "heavy = {'tensorflow', 'keras', 'numba', 'matplotlib', 'xarray'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_the_page_is_served_over_a_store_without_a_centre(config, fill):
    """In a process of its own, until a signal."""
    import urllib.request

    fill(event=7)
    config.write_text(config.read_text().replace("[[model]]", 'page_listen = "127.0.0.1:0"\n[[model]]'))
    command = [sys.executable, "-m", "epic", "central", "page", "--config", str(config)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        address = json.loads(process.stderr.readline())["address"]
        with urllib.request.urlopen(f"{address}api/events", timeout=20) as answer:
            assert [row["event"] for row in json.load(answer)["events"]] == [7]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("listen", "said"), [("0.0.0.0:8080", "only on loopback"), ("8080", "expected HOST:PORT")]
)
def test_a_page_elsewhere_is_not_for_everybody(config, fill, capsys, listen, said):
    fill(event=7)
    assert central("page", "--config", config, "--listen", listen) == 2
    assert said in complaint(capsys)


def test_a_page_without_a_store_is_one_line(config, data_dir, capsys):
    (data_dir / "central.sqlite").unlink()
    assert central("page", "--config", config) == 2
    assert "not found; expected the data_dir of a centre" in complaint(capsys)


def test_the_last_microsecond_of_the_year_9999_is_listed(config, data_dir, capsys):
    """By floating point it is the year 10000, which no date holds: the list was broken for good."""
    put_map(data_dir, 7, sample_time_us=253_402_300_799_999_999)
    put_map(data_dir, 8, sample_time_us=1 << 63)
    assert central("list", "--config", config, "--json") == 0
    assert {row["sampled"] for row in json.loads(capsys.readouterr().out)} == {
        "9999-12-31T23:59:59.999999+00:00"
    }
    for command in (["list"], ["show", 7], ["show", 8]):
        assert central(*command, "--config", config) == 0
        assert "9999-12-31" in capsys.readouterr().out


def test_the_list_ends_with_the_last_events_and_begins_where_it_is_told_to(config, data_dir, capsys):
    day_us = 86_400_000_000
    start_us = 1_764_000_000_000_000  # 24 November 2025, 16:00 UTC.
    for n in range(60):
        put_map(data_dir, n, decoded_us=start_us + n * day_us, last_record=1000 - n)
    put_map(data_dir, 3, decoded_us=start_us + 60 * day_us, last_record=2000)

    def listed(*options):
        assert central("list", "--config", config, "--json", *options) == 0
        return [row["event"] for row in json.loads(capsys.readouterr().out)]

    assert listed() == [*range(11, 60), 3], "fifty"
    assert listed("--last", 2) == [59, 3]
    assert len(listed("--last", 0)) == 60
    assert listed("--since", "2026-01-22") == [59, 3]
    assert listed("--since", "2026-01-22", "--last", 1) == [3]
    assert listed("--since", "2027-01-01") == []
    # Refined today, decoded in November.
    put_map(data_dir, 1, decoded_us=start_us + day_us, last_record=999, refinement={"of_revision": 1})
    assert listed("--since", "2026-01-22") == [59, 3]
    assert listed("--since", "2026-01-22", "--last", 2) == [59, 3]
    assert listed("--last", 2) == [3, 1]
    assert listed("--since", "2025-11-25")[-2:] == [3, 1]


def test_a_device_is_forgotten_by_a_command(config, data_dir, capsys):
    with closing(Journal(data_dir)) as journal:
        journal.commit([(latent_record(device=d), 1, 60) for d in (3, 4)])
    assert central("devices", "forget", 3, "--config", config) == 0
    assert "device 3 of survey 1 is forgotten" in capsys.readouterr().out
    assert central("devices", "--config", config, "--json") == 0
    assert [row["device"] for row in json.loads(capsys.readouterr().out)] == [4]
    assert central("devices", "forget", 3, "--config", config) == 2
    assert "device 3" in complaint(capsys)
