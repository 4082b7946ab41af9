"""Fetched gathers: written for other programs and read back, drawn, refined, removed by retention."""

import json
import sqlite3
import threading
from contextlib import closing

import numpy as np
import pytest
from fake_decoder import SURVEY
from fetch_rig import T_US, FetchRig, put_event

import epic
from central.config import RetentionSection
from central.export.errors import ExportError
from central.export.line import Line
from central.recordings.export import export_gather
from central.recordings.gathers import assemble
from central.recordings.picture import gather_figure
from central.recordings.store import RecordingStore
from central.storage.database import FILE_NAME
from central.storage.retention import Retention
from firmware_py.runtime.log import Log
from physics.files.field.miniseed import MiniseedFormat
from physics.files.field.segy import SegyFormat
from physics.files.field.traces import ReadOptions
from physics.files.field_files import ImportOptions, read_field_gather

MISSING = list(SURVEY.device_receivers[2])


@pytest.fixture
def gather(data_dir):
    """Event 7 without device 2."""
    put_event(data_dir, 7)
    with FetchRig(data_dir, devices=[0, 1, 3, 4]) as rig:
        rig.store.ask(7, None, [0, 1, 3, 4])
        rig.run()
    return assemble(data_dir, 7)


def test_npy_holds_the_samples_and_its_neighbour_the_provenance(gather, tmp_path):
    assert export_gather(gather, tmp_path / "event.npy") == "npy"
    samples = np.load(tmp_path / "event.npy")
    np.testing.assert_array_equal(samples, gather.samples)
    assert np.isnan(samples[:, :, MISSING]).all()
    provenance = json.loads((tmp_path / "event.npy.json").read_text())
    assert provenance == gather.provenance
    assert provenance["missing_devices"] == [2]
    assert {part["sample_time_us"] for part in provenance["parts"]} == {T_US + 7}
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "event.npy",
        "event.npy.json",
    ]


def test_segy_is_read_back_by_the_importer(gather, tmp_path):
    pytest.importorskip("segyio", reason="the extra geo is not installed")
    export_gather(gather, tmp_path / "event.sgy")
    import segyio

    with segyio.open(tmp_path / "event.sgy", ignore_geometry=True) as file:
        traces = np.stack([file.trace[i] for i in range(file.tracecount)])
        codes = file.attributes(segyio.TraceField.TraceIdentificationCode)[:]
        offsets = file.attributes(segyio.TraceField.offset)[:]
    shape = (SURVEY.n_sources, SURVEY.n_receivers)
    expected = np.nan_to_num(gather.samples).transpose(0, 2, 1)
    np.testing.assert_array_equal(traces.reshape(*shape, SURVEY.n_time), expected)
    assert (codes.reshape(shape) == np.where(gather.live, 1, 2)).all()
    cells = np.subtract.outer(np.array(SURVEY.source_cells), np.array(SURVEY.receiver_cells))
    assert (offsets.reshape(shape) == np.rint(-cells * SURVEY.dx_m)).all()
    read = SegyFormat().read(tmp_path / "event.sgy", ReadOptions())
    assert read is not None


def test_without_a_line_sources_and_receivers_are_where_the_survey_says(gather, tmp_path):
    segyio = pytest.importorskip("segyio", reason="the extra geo is not installed")
    export_gather(gather, tmp_path / "event.sgy")
    with segyio.open(tmp_path / "event.sgy", ignore_geometry=True) as file:
        at_m = [
            file.attributes(field)[:].reshape(SURVEY.n_sources, SURVEY.n_receivers) / 1000
            for field in (segyio.TraceField.SourceX, segyio.TraceField.GroupX)
        ]
    np.testing.assert_array_equal(at_m[0][:, 0], [10.0 * cell for cell in SURVEY.source_cells])
    np.testing.assert_array_equal(at_m[1][0], [10.0 * cell for cell in SURVEY.receiver_cells])


def test_a_segy_has_the_coordinates_of_the_line(gather, tmp_path):
    """They are those of the importer: it finds the line where the configuration says it is."""
    segyio = pytest.importorskip("segyio", reason="the extra geo is not installed")
    line = Line((500_000.0, 4_512_345.0), 30.0, "EPSG:25832")
    export_gather(gather, tmp_path / "event.sgy", line)
    with segyio.open(tmp_path / "event.sgy", ignore_geometry=True) as file:
        assert b"X and Y in cm, EPSG:25832" in bytes(file.text[0])
    read = read_field_gather([tmp_path / "event.sgy"], SURVEY, ImportOptions(allow_silent=True))
    assert read.origin_m == pytest.approx(line.origin_m, abs=0.1)
    assert read.azimuth_deg == pytest.approx(30.0, abs=0.01)
    np.testing.assert_allclose(read.gather, np.nan_to_num(gather.samples), rtol=1e-6)
    assert json.loads((tmp_path / "event.sgy.json").read_text())["line"]["crs"] == "EPSG:25832"
    with pytest.raises(ExportError, match="SEG-Y holds coordinates of up to 21474836 m"):
        export_gather(gather, tmp_path / "far.sgy", Line((3e7, 0.0), 30.0))
    assert not list(tmp_path.glob("far*"))


def test_a_foreign_json_beside_a_gather_is_kept(gather, tmp_path):
    (tmp_path / "event.npy.json").write_text('{"mine": 1}')
    with pytest.raises(ExportError, match="event.npy.json: is another file than the provenance of a gather"):
        export_gather(gather, tmp_path / "event.npy")
    assert (tmp_path / "event.npy.json").read_text() == '{"mine": 1}' and not (
        tmp_path / "event.npy"
    ).exists()
    for _ in range(2):
        export_gather(gather, tmp_path / "other.npy")


def test_miniseed_is_read_back_by_the_importer_without_the_missing_device(gather, tmp_path):
    pytest.importorskip("pymseed", reason="the extra geo is not installed")
    export_gather(gather, tmp_path / "event.mseed")
    read = MiniseedFormat().read(tmp_path / "event.mseed", ReadOptions())
    assert len(read.channels) == SURVEY.n_sources * (SURVEY.n_receivers - len(MISSING))
    (piece,) = read.channels["XX.R0003.04.GPZ"]
    np.testing.assert_array_equal(piece.samples, gather.samples[4, :, 3].astype(np.float64))
    assert not any(name.startswith(f"XX.R{MISSING[0]:04d}.") for name in read.channels)


def test_a_format_that_is_not_there_is_said_and_nothing_is_written(gather, tmp_path):
    with pytest.raises(ExportError, match=r"expected the suffix of a format, npy \(.npy\), .*got '.txt'"):
        export_gather(gather, tmp_path / "event.txt")
    with pytest.raises(ExportError, match="expected the name of a file in a folder that exists"):
        export_gather(gather, tmp_path / "none" / "event.npy")
    assert not list(tmp_path.glob("*event*"))


@pytest.mark.parametrize(
    ("cells", "begin_m", "end_m"),
    [(range(70), -5.0, 695.0), (range(20, 60, 2), 190.0, 590.0), ([30], 295.0, 305.0)],
)
def test_a_picture_has_the_receivers_where_they_stand(fill, monkeypatch, cells, begin_m, end_m):
    count = len(cells)
    survey = {
        **SURVEY.to_dict(),
        "receiver_cells": list(cells),
        "device_receivers": [list(range(count))],
        "n_time": 10,
    }
    stored = fill()
    stored.provenance["acquisition"] = survey
    shape = (SURVEY.n_sources, 10, count)
    monkeypatch.setattr("physics.modelling.model_gathers", lambda *_, **__: np.zeros((1, *shape)))
    figure = gather_figure(stored, np.ones(shape, np.float32))
    axis = figure.axes[0]
    assert axis.images[0].get_extent()[:2] == pytest.approx([begin_m, end_m])
    assert axis.get_xlim() == (-5.0, 695.0), "the line, from half a cell before the centre of the first"


@pytest.fixture
def config(tmp_path, data_dir):
    path = tmp_path / "central.toml"
    path.write_text(
        f'[central]\nlisten = "tcp://127.0.0.1:*"\ninsecure = true\ndata_dir = "{data_dir}"\n'
        '[[model]]\nbundle = "none"\ndecoder = "none"\n[fetch]\nbytes_per_day = 1000\n'
    )
    return path


def test_the_commands_ask_list_and_drop(config, data_dir, gather, capsys):
    with closing(sqlite3.connect(data_dir / FILE_NAME)) as database, database:
        status = json.dumps({"kept_recordings": 1200})
        database.execute("INSERT INTO device VALUES (1, 0, 5, 0, 0, 0, '', ?)", (status,))
    assert (
        epic.main(["central", "fetch", "7", "--device", "2", "--misfit", "0.5", "--config", str(config)]) == 0
    )
    printed = capsys.readouterr()
    assert "asked" in printed.out and "budget a device and day: 1000 bytes, all day" in printed.out
    assert "no centre is running on this folder" in printed.err
    assert "recordings on the devices: device 0 of survey 1 has 1200\n" in printed.out
    with closing(RecordingStore(data_dir)) as store:
        (request,) = store.requests(only_open=True)
    assert (request.device, request.misfit_ppm, request.asked_by) == (2, 5000, "operator")
    assert epic.main(["central", "fetch", "--json", "--config", str(config)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["state"] for row in rows].count("kept") == 4
    assert epic.main(["central", "fetch", "7", "--wait", "0", "--config", str(config)]) == 1
    assert epic.main(["central", "fetch", "7", "--drop", "--device", "2", "--config", str(config)]) == 0
    with closing(RecordingStore(data_dir)) as store:
        assert len(store.requests()) == 4
    capsys.readouterr()
    assert epic.main(["central", "fetch", "8", "--config", str(config)]) == 2
    assert "event 8: not in the store" in capsys.readouterr().err


def test_the_list_of_requests_says_what_it_leaves_out_and_json_is_whole(
    config, data_dir, capsys, monkeypatch
):
    monkeypatch.setattr("central.recordings.cli.MAX_SHOWN", 3)
    put_event(data_dir, 7)
    with closing(RecordingStore(data_dir)) as store:
        store.ask(7, None)
    with closing(sqlite3.connect(data_dir / FILE_NAME)) as database, database:
        for device in range(5):
            database.execute(
                "INSERT INTO device VALUES (1, ?, 5, 0, 0, 0, '', ?)", (device, '{"kept_recordings": 12}')
            )
    assert epic.main(["central", "fetch", "--config", str(config)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("asked") == 4, "the heading, and devices 2 to 4"
    assert "2 older requests are left out; --json lists all\n" in shown
    assert "device 2 of survey 1 has 12, and 2 more devices\n" in shown
    assert epic.main(["central", "fetch", "7", "--config", str(config)]) == 0
    assert "left out" not in capsys.readouterr().out, "all of one event"
    assert epic.main(["central", "fetch", "--json", "--config", str(config)]) == 0
    assert [row["device"] for row in json.loads(capsys.readouterr().out)] == [0, 1, 2, 3, 4]


def test_the_command_exports(config, gather, tmp_path, capsys):
    config.write_text(config.read_text() + "[line]\norigin_m = [500000.0, 4512345.0]\nazimuth_deg = 30.0\n")
    out = tmp_path / "out.npy"
    assert epic.main(["central", "gather", "7", "--out", str(out), "--config", str(config)]) == 0
    assert f"event 7 in {out}; without devices 2" in capsys.readouterr().out
    np.testing.assert_array_equal(np.load(out), gather.samples)
    assert json.loads((tmp_path / "out.npy.json").read_text())["line"]["azimuth_deg"] == 30.0


def prune(data_dir, section):
    log = Log(data_dir / "retention.jsonl")
    Retention(data_dir, section, log).prune(threading.Event())
    log.close()


def test_retention_removes_the_recordings_that_were_fetched_first(data_dir):
    for event in (3, 4, 5):
        put_event(data_dir, event)
    with FetchRig(data_dir, devices=[0]) as rig:
        for event in (4, 3, 5):
            rig.store.ask(event, None, [0])
            rig.run()
        with closing(sqlite3.connect(data_dir / FILE_NAME)) as database, database:
            # Three are more than a MiB, two are not.
            database.execute("UPDATE recording SET part_bytes = 400000")
        prune(data_dir, RetentionSection(max_recordings_mib=1))
        assert [request.event for request in rig.store.requests()] == [3, 5]
    with closing(sqlite3.connect(data_dir / FILE_NAME)) as database:
        assert {row[0] for row in database.execute("SELECT event FROM recording_piece")} == {3, 5}


def test_retention_leaves_an_event_whose_requests_are_open_and_removes_kept_parts_alone(data_dir):
    for event in (3, 4, 5):
        put_event(data_dir, event)
    with FetchRig(data_dir) as rig:
        rig.devices[2].removed.add(4)
        for event in (3, 4, 5):
            rig.store.ask(event, None, [0, 1, 2])
            rig.run()
        rig.store.ask(3, None, [4])
        with closing(sqlite3.connect(data_dir / FILE_NAME)) as database, database:
            database.execute("UPDATE recording SET part_bytes = 400000 WHERE state = 'kept' AND event < 5")
        prune(data_dir, RetentionSection(max_recordings_mib=1))
        left = [(r.event, r.device, r.state) for r in rig.store.requests() if r.event < 5]
    assert left == [(3, 0, "kept"), (3, 1, "kept"), (3, 2, "kept"), (4, 2, "absent"), (3, 4, "asked")]
    with closing(sqlite3.connect(data_dir / FILE_NAME)) as database:
        assert not database.execute("SELECT count(*) FROM recording_piece WHERE event = 4").fetchone()[0]


def test_retention_leaves_the_recordings_of_a_queued_refinement(data_dir):
    for event in (3, 4):
        put_event(data_dir, event)
    with FetchRig(data_dir, devices=[0]) as rig:
        for event in (3, 4):
            rig.store.ask(event, None, [0])
        rig.run()
        with closing(sqlite3.connect(data_dir / FILE_NAME)) as database, database:
            database.execute("UPDATE recording SET part_bytes = 800000")
            job = (None, 1, 3, "fetched", "", "", 20, "blocky", "waiting", "", None, 0, 1, 0, 1)
            database.execute(f"INSERT INTO refinement_job VALUES ({','.join('?' * len(job))})", job)
        prune(data_dir, RetentionSection(max_recordings_mib=1))
        assert [request.event for request in rig.store.requests()] == [3]


def test_a_request_that_is_deleted_while_the_command_waits_is_no_success(
    config, data_dir, gather, capsys, monkeypatch
):
    asked = RecordingStore.ask

    def ask_and_drop(self, event, survey, *given, **more):
        found = asked(self, event, survey, *given, **more)
        self.drop(event, 1, [0, 2])
        return found

    monkeypatch.setattr(RecordingStore, "ask", ask_and_drop)
    assert epic.main(["central", "fetch", "7", "--wait", "0", "--config", str(config)]) == 1
    assert "event 7: the requests to devices 0, 2 were deleted meanwhile" in capsys.readouterr().err


def test_recordings_go_with_their_event(data_dir):
    for event in (3, 4):
        put_event(data_dir, event)
    with FetchRig(data_dir, devices=[0]) as rig:
        for event in (3, 4):
            rig.store.ask(event, None, [0])
        rig.run()
        prune(data_dir, RetentionSection(max_events=1))
        assert [request.event for request in rig.store.requests()] == [4]
