"""SEG-Y and miniSEED as the field writes them, read back onto the survey's grid."""

import json
import sys

import numpy as np
import pytest

import epic
from physics.acquisition import Acquisition
from physics.files.field_files import FieldFileError, ImportOptions, read_field_gather

segyio = pytest.importorskip("segyio", reason="the extra geo is not installed")
obspy = pytest.importorskip("obspy", reason="the extra geo is not installed")

SURVEY = Acquisition.openfwi()


def read_one(path, **options):
    return read_field_gather([path], SURVEY, ImportOptions(**options))


@pytest.fixture(scope="module")
def gather():
    """Wavelets that arrive later with distance: smooth, and different at every receiver."""
    time_s = np.arange(SURVEY.n_time) * SURVEY.dt_s
    sources, receivers = np.array(SURVEY.source_cells), np.array(SURVEY.receiver_cells)
    arrival_s = 0.1 + np.abs(sources[:, None] - receivers[None]) * 0.006
    b = ((time_s[None, :, None] - arrival_s[:, None, :]) * 15 * np.pi) ** 2
    return ((1 - 2 * b) * np.exp(-b)).astype(np.float32)


def write_segy(path, gather, step=1, origin_m=1000.0, scalar=-100, interval_us=1000, skip=(), delay_ms=0):
    """Shot by shot, receivers backwards, coordinates in centimetres by their scalar."""
    spec = segyio.spec()
    spec.samples = np.arange(gather[:, ::step].shape[1])
    spec.format = 5
    spec.tracecount = SURVEY.n_sources * (SURVEY.n_receivers - len(skip))
    with segyio.create(path, spec) as file:
        file.bin[segyio.BinField.Interval] = interval_us * step
        trace = 0
        for s, source in enumerate(SURVEY.source_cells):
            for r in reversed(range(SURVEY.n_receivers)):
                if r in skip:
                    continue
                x_m = (origin_m + source * 10.0, origin_m + SURVEY.receiver_cells[r] * 10.0)
                scaled = [round(x * -scalar) if scalar < 0 else round(x / (scalar or 1)) for x in x_m]
                file.trace[trace] = np.ascontiguousarray(gather[s, ::step, r])
                file.header[trace] = {
                    segyio.TraceField.FieldRecord: s + 1,
                    segyio.TraceField.SourceX: scaled[0],
                    segyio.TraceField.GroupX: scaled[1],
                    segyio.TraceField.SourceGroupScalar: scalar,
                    segyio.TraceField.DelayRecordingTime: delay_ms,
                    segyio.TraceField.TRACE_SAMPLE_INTERVAL: interval_us * step,
                }
                trace += 1
    return path


@pytest.mark.parametrize("scalar", [-100, 0, 1, 10])
def test_traces_find_their_place_by_their_coordinates(tmp_path, gather, scalar):
    read = read_one(write_segy(tmp_path / "a.sgy", gather, scalar=scalar))
    np.testing.assert_array_equal(read.gather, gather)
    assert read.steps == ("350 of 350 traces of a.sgy by their positions, cell 0 at 1000 m",)


def test_two_milliseconds_become_one(tmp_path, gather):
    read = read_one(write_segy(tmp_path / "a.segy", gather, step=2))
    # Away from the ends of the record, where the filter has only one side.
    assert np.abs(read.gather - gather)[:, 50:-50].max() < 0.01
    assert "resampled from 2 to 1 ms" in read.steps[1]


def test_a_receiver_without_trace_is_silent_and_said(tmp_path, gather):
    read = read_one(write_segy(tmp_path / "a.sgy", gather, skip=(3, 40)), gain=2.0)
    assert not read.gather[:, :, [3, 40]].any()
    np.testing.assert_array_equal(read.gather[:, :, 4], 2 * gather[:, :, 4])
    assert read.steps[1:] == ("multiplied by 2", "10 of 350 traces silent: receivers 3, 40")


def test_a_wrong_origin_says_where_the_shots_are(tmp_path, gather):
    path = write_segy(tmp_path / "a.sgy", gather)
    with pytest.raises(FieldFileError, match=r"no shot at x = 0, 170, .* its shots are at 1000, 1170"):
        read_one(path, origin_m=0.0)


@pytest.mark.parametrize(("first", "expected_m"), [(0, 1000), (2, 980)])
def test_the_first_receiver_tells_where_the_surveys_first_cell_is(tmp_path, gather, first, expected_m):
    """Also where no receiver stands in that cell."""
    moved = {
        "n_width": 75,
        "source_cells": [first + cell for cell in SURVEY.source_cells],
        "receiver_cells": [first + cell for cell in SURVEY.receiver_cells],
    }
    survey = Acquisition.from_dict({**SURVEY.to_dict(), **moved})
    read = read_field_gather([write_segy(tmp_path / "a.sgy", gather)], survey)
    np.testing.assert_array_equal(read.gather, gather)
    assert read.steps == (f"350 of 350 traces of a.sgy by their positions, cell 0 at {expected_m} m",)


def miniseed(tmp_path, gather, delta_s=0.001, offset_s=0.0, cut_s=0.0):
    """A continuous record of a shot every 2 s, and the geometry that goes with it."""
    start = obspy.UTCDateTime("2026-11-25T10:00:00Z")
    step = round(delta_s / SURVEY.dt_s)
    traces = []
    for r in range(SURVEY.n_receivers):
        data = np.zeros(10_500 // step, np.float32)
        for s in range(SURVEY.n_sources):
            first = (500 + 2000 * s) // step
            shot = gather[s, ::step, r]
            data[first : first + len(shot)] = shot
        data = data[: len(data) - round(cut_s / delta_s)]
        trace = obspy.Trace(
            data, {"network": "XX", "station": f"R{r:03}", "channel": "DPZ", "delta": delta_s}
        )
        trace.stats.starttime = start
        traces.append(trace)
    path = tmp_path / "line.mseed"
    obspy.Stream(traces).write(str(path), format="MSEED")
    shots = [str(start + 0.5 + 2.0 * s + offset_s) for s in range(SURVEY.n_sources)]
    geometry = tmp_path / "survey.toml"
    receivers = [f"XX.R{r:03}..DPZ" for r in range(SURVEY.n_receivers)]
    geometry.write_text(f"receivers = {receivers}\nshots = {shots}\n")
    return path, geometry


def test_shots_are_cut_from_a_continuous_record(tmp_path, gather):
    path, geometry = miniseed(tmp_path, gather)
    read = read_one(path, geometry=geometry)
    np.testing.assert_allclose(read.gather, gather, atol=1e-6)


def test_a_shot_between_two_samples_is_interpolated(tmp_path, gather):
    path, geometry = miniseed(tmp_path, gather, offset_s=0.0005)
    read = read_one(path, geometry=geometry)
    between = (gather[:, :-1] + gather[:, 1:]) / 2
    np.testing.assert_allclose(read.gather[:, :-1], between, atol=1e-5)


@pytest.mark.parametrize(("gap_s", "silent"), [((9.6, 9.7), []), ((8.6, 8.7), [(4, 40)])])
def test_a_gap_matters_where_a_shot_is_cut_from(tmp_path, gather, gap_s, silent):
    path, geometry = miniseed(tmp_path, gather)
    stream = obspy.read(str(path))
    (whole,) = stream.select(station="R040")
    start = whole.stats.starttime
    stream.remove(whole)
    stream += whole.slice(endtime=start + gap_s[0])
    stream += whole.slice(starttime=start + gap_s[1])
    stream.write(str(path), format="MSEED")
    read = read_one(path, geometry=geometry)
    expected = gather.copy()
    for source, receiver in silent:
        expected[source, :, receiver] = 0
    np.testing.assert_allclose(read.gather, expected, atol=1e-6)
    assert any(
        "(XX.R040..DPZ) is silent for shot" in step and "a gap" in step for step in read.steps
    ) == bool(silent)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda path, geometry: geometry.write_text("receivers = ['a']\nshots = []"),
            "a list of 70 receivers, got 1",
        ),
        (lambda path, geometry: geometry.write_text("receivers = "), "expected TOML"),
        (lambda path, geometry: geometry.unlink(), "cannot be read"),
        (lambda path, geometry: path.write_bytes(path.read_bytes()[:100]), "not a whole miniSEED file"),
        (lambda path, geometry: path.unlink(), "not found"),
        (
            lambda path, geometry: geometry.write_text(geometry.read_text().replace("XX.", "YY.")),
            "none of the geometry's receivers is there; it has XX.R000..DPZ",
        ),
        (
            lambda path, geometry: geometry.write_text(geometry.read_text().replace("T10:00:0", "T10:59:0")),
            "too short or has another clock",
        ),
    ],
)
def test_what_is_wrong_with_a_miniseed_record_is_one_line(tmp_path, gather, break_it, message):
    path, geometry = miniseed(tmp_path, gather)
    break_it(path, geometry)
    with pytest.raises(FieldFileError, match=message) as caught:
        read_one(path, geometry=geometry)
    assert "\n" not in str(caught.value)


def test_other_files_and_damaged_ones_are_refused(tmp_path, gather):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(FieldFileError, match=r"SEG-Y \(.sgy, .segy\).* got '.txt'"):
        read_one(tmp_path / "a.txt")
    (tmp_path / "a.sgy").write_bytes(bytes(100))
    with pytest.raises(FieldFileError, match="not a whole SEG-Y file"):
        read_one(tmp_path / "a.sgy")
    with pytest.raises(FieldFileError, match="give --geometry"):
        read_one(miniseed(tmp_path, gather)[0])
    late = write_segy(tmp_path / "late.sgy", gather, delay_ms=100)
    with pytest.raises(FieldFileError, match="begins 100 ms after the shot"):
        read_one(late)
    short = write_segy(tmp_path / "short.sgy", gather[:, :400])
    with pytest.raises(FieldFileError, match=r"expected 1 s of record, got 0.4 s"):
        read_one(short)


def test_a_segy_file_becomes_a_gather_with_its_steps(tmp_path, gather, capsys):
    path = write_segy(tmp_path / "shots.sgy", gather)
    assert epic.main(["data", "import", str(path), "--out", str(tmp_path / "mine.npy"), "--gain", "30"]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "mine.npy"), 30 * gather)
    assert json.loads((tmp_path / "mine.json").read_text())["steps"][1] == "multiplied by 30"
    out = capsys.readouterr().out
    assert "peak 30" in out and "note:" not in out
    assert (
        epic.main(["data", "import", str(path), "--out", str(tmp_path / "mine.npy"), "--gain", "0.05"]) == 0
    )
    assert "Import again with --gain 40\n" in capsys.readouterr().out


def test_a_missing_package_is_named_with_its_extra(tmp_path, gather, capsys, monkeypatch):
    path = write_segy(tmp_path / "shots.sgy", gather)
    path, geometry = miniseed(tmp_path, gather)
    monkeypatch.setitem(sys.modules, "pymseed", None)
    command = ["data", "import", str(path), "--geometry", str(geometry), "--out", str(tmp_path / "mine.npy")]
    assert epic.main(command) == 2
    assert "this needs pymseed; " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("out", "said"), [("mine.txt", "expected a .npy file"), ("no/mine.npy", "in a folder that")]
)
def test_a_place_that_takes_no_gather_is_one_line(tmp_path, gather, capsys, out, said):
    path = write_segy(tmp_path / "shots.sgy", gather)
    assert epic.main(["data", "import", str(path), "--out", str(tmp_path / out)]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / out).exists()
