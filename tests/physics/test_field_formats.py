"""Field recordings of every format and flavour onto a small survey: right, or refused with a reason."""

import contextlib
import dataclasses
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from segy_bytes import Trace, seg2_bytes, segy_bytes, su_bytes

import epic
from physics.acquisition import Acquisition
from physics.files.field_files import FieldFileError, ImportOptions, read_field_gather
from physics.files.survey_file import read_survey

CASES = Path(__file__).parent / "field_cases"
SURVEY = read_survey(CASES / "small.toml")
# A step of 1 in whole numbers, so that integer formats hold the same samples.
STEP_M = 10


@pytest.fixture(scope="module")
def gather():
    """Wavelets ``(S, T, R)`` of whole numbers up to 96, later with distance."""
    sources, receivers = np.array(SURVEY.source_cells), np.array(SURVEY.receiver_cells)
    arrival_s = 0.1 + np.abs(sources[:, None] - receivers[None]) * 0.02
    b = ((np.arange(SURVEY.n_time)[None, :, None] * SURVEY.dt_s - arrival_s[:, None, :]) * 15 * np.pi) ** 2
    return (8 * np.round(12 * (1 - 2 * b) * np.exp(-b))).astype(np.float32)


def traces_of(gather, at=lambda cell: (100 * (1000 + STEP_M * cell), 0), **changes):
    """A trace for each source and receiver, positions in centimetres."""
    return [
        Trace(gather[s, :, r], at(source), at(receiver), **changes)
        for s, source in enumerate(SURVEY.source_cells)
        for r, receiver in enumerate(SURVEY.receiver_cells)
    ]


def read(path, content, **options):
    path.write_bytes(content)
    return read_field_gather([path], SURVEY, ImportOptions(**options))


def finer(samples, times):
    """Samples ``(..., T)`` on a grid ``times`` as fine, straight between samples."""
    at = np.arange(times * samples.shape[-1]) / times
    return np.apply_along_axis(lambda one: np.interp(at, np.arange(len(one)), one), -1, samples)


def changed(traces, index, **values):
    return [dataclasses.replace(t, **values) if i == index else t for i, t in enumerate(traces)]


def n_silent(result):
    return int((~result.gather.any(axis=1)).sum())


# Which samples are read, and when


@pytest.mark.parametrize("order", [">", "<"])
@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_signed_sample_formats_in_both_byte_orders(tmp_path, gather, order, code):
    found = read(tmp_path / "a.sgy", segy_bytes(traces_of(gather), order, code))
    np.testing.assert_array_equal(found.gather, gather)


@pytest.mark.parametrize("code", [10, 11, 12, 15, 16])
def test_unsigned_sample_formats(tmp_path, gather, code):
    lifted = gather + 100
    np.testing.assert_array_equal(
        read(tmp_path / "a.sgy", segy_bytes(traces_of(lifted), code=code)).gather, lifted
    )


@pytest.mark.parametrize("code", [0, 13, 99])
def test_an_unknown_sample_format_is_named(tmp_path, gather, code):
    content = bytearray(segy_bytes(traces_of(gather)))
    struct.pack_into(">h", content, 3224, code)
    with pytest.raises(FieldFileError, match=f"expected a sample format code of 1, .* got {code}; export"):
        read(tmp_path / "a.sgy", content)


@pytest.mark.parametrize("order", [">", "<"])
def test_an_interval_in_the_double_of_revision_2(tmp_path, gather, order):
    content = segy_bytes(
        traces_of(gather, interval_us=0),
        order,
        fields=[(3273, "d", 1000.0), (3297, "I", 16909060)],
        revision=b"\2\0",
    )
    np.testing.assert_array_equal(read(tmp_path / "a.sgy", content).gather, gather)


def test_the_double_of_revision_2_is_more_exact_than_whole_microseconds(tmp_path, gather):
    """31.25 us: trace headers can say 31 alone, and 0.8 % of a record is four samples of the survey."""
    fine = np.moveaxis(finer(np.moveaxis(gather, 1, 2), 32), 2, 1)
    content = segy_bytes(traces_of(fine, interval_us=31), fields=[(3273, "d", 31.25)], revision=b"\2\0")
    found = read(tmp_path / "a.sgy", content)
    assert np.abs(found.gather - gather)[:, 20:-20].max() < 2


def test_trace_header_extensions_and_trailers_of_revision_2(tmp_path, gather):
    extensions = []
    for trace in traces_of(gather):
        extension = bytearray(240)
        for byte, value in ((97, trace.source[0] / 100), (113, trace.receiver[0] / 100)):
            struct.pack_into(">d", extension, byte - 1, value)
        extension[232:] = b"SEG00001"
        extensions.append((bytes(extension),))
    traces = traces_of(gather, at=lambda cell: (0, 0))
    content = segy_bytes(
        traces, fields=[(3507, "i", 1), (3529, "i", 1)], revision=b"\2\0", extensions=extensions
    ) + bytes(3200)
    np.testing.assert_array_equal(read(tmp_path / "a.sgy", content).gather, gather)


@pytest.mark.parametrize("encoding", ["cp037", "ascii"])
def test_extended_textual_headers_of_a_variable_number(tmp_path, gather, encoding):
    texts = ["first".ljust(3200).encode(encoding), "((SEG: EndText))".ljust(3200).encode(encoding)]
    content = segy_bytes(traces_of(gather), fields=[(3505, "h", -1)], texts=texts)
    np.testing.assert_array_equal(read(tmp_path / "a.sgy", content).gather, gather)


def test_traces_of_different_lengths(tmp_path, gather):
    """The longer one is cut, the shorter one silent and named."""
    traces = traces_of(gather)
    longer = np.concatenate([traces[1].samples, np.ones(77)])
    traces = changed(changed(traces, 1, samples=longer), 4, samples=traces[4].samples[:300])
    found = read(tmp_path / "a.sgy", segy_bytes(traces, fields=[(3503, "h", 0)]))
    np.testing.assert_array_equal(found.gather[0, :, :4], gather[0, :, :4])
    assert not found.gather[0, :, 4].any() and n_silent(found) == 1
    assert "a.sgy trace 5: expected 0.5 s of record, got 0.3 s; silent" in found.steps


def test_headers_that_contradict_each_other_on_the_interval(tmp_path, gather):
    content = segy_bytes(traces_of(gather), fields=[(3217, "H", 2000)])
    with pytest.raises(FieldFileError, match="got 2 ms in the file header and 1 ms in trace headers"):
        read(tmp_path / "a.sgy", content)
    found = read(tmp_path / "a.sgy", content, interval_s=1e-3)
    np.testing.assert_array_equal(found.gather, gather)
    assert "interval of 1 ms as given; headers say 1, 2 ms" in found.steps


def test_an_interval_that_changes_within_a_file(tmp_path, gather):
    traces = traces_of(gather)
    half = [dataclasses.replace(t, samples=finer(t.samples, 2), interval_us=500) for t in traces[6:]]
    found = read(tmp_path / "a.sgy", segy_bytes(traces[:6] + half, fields=[(3503, "h", 0)]))
    np.testing.assert_array_equal(found.gather[0], gather[0])
    assert np.abs(found.gather[1] - gather[1]).max() < 2
    assert "intervals of 0.5, 1 ms, each trace by its own header" in found.steps
    assert "resampled from 0.5 to 1 ms (polyphase)" in found.steps


@pytest.mark.parametrize(("delay", "scalar"), [(-100, 0), (-100, 1), (-1000, -10), (-10, 10)])
def test_what_was_recorded_before_the_shot_is_cut_off(tmp_path, gather, delay, scalar):
    early = np.concatenate([np.full((2, 100, 6), 7.0), gather], axis=1)
    traces = traces_of(early, fields=[(109, "h", delay), (215, "h", scalar)])
    found = read(tmp_path / "a.sgy", segy_bytes(traces))
    np.testing.assert_array_equal(found.gather, gather)
    assert "100 ms before the shot cut off" in found.steps


def test_a_record_that_begins_after_the_shot_is_refused(tmp_path, gather):
    with pytest.raises(FieldFileError, match="begins 100 ms after the shot"):
        read(tmp_path / "a.sgy", segy_bytes(traces_of(gather, fields=[(109, "h", 100)])))


# Which traces are taken


def test_dead_and_auxiliary_traces_are_left_out(tmp_path, gather):
    noise = np.full(SURVEY.n_time, 50.0)
    traces = changed(traces_of(gather, at=lambda cell: (100 * STEP_M * cell, 0)), 2, kind=2, samples=noise)
    traces += [Trace(noise, kind=kind) for kind in (6, 4, 5)]
    found = read(tmp_path / "a.sgy", segy_bytes(traces))
    assert not found.gather[0, :, 2].any() and n_silent(found) == 1
    np.testing.assert_array_equal(found.gather[:, :, 0], gather[:, :, 0])
    for told in ("dead", "sweep", "time break", "uphole"):
        assert f"1 trace left out: {told}" in found.steps
    assert found.steps[-1] == "1 of 12 traces silent: source 0 receiver 2"


def test_nothing_but_auxiliary_traces(tmp_path, gather):
    with pytest.raises(FieldFileError, match="expected traces of seismic data .* got sweep"):
        read(tmp_path / "a.sgy", segy_bytes(traces_of(gather, kind=6)))


def test_one_component_is_chosen_of_three(tmp_path, gather):
    traces = (
        traces_of(gather, kind=12) + traces_of(0 * gather + 9, kind=13) + traces_of(0 * gather + 8, kind=14)
    )
    content = segy_bytes(traces)
    with pytest.raises(
        FieldFileError, match="several components: crossline, inline, vertical; .* --component"
    ):
        read(tmp_path / "a.sgy", content)
    found = read(tmp_path / "a.sgy", content, component="vertical")
    np.testing.assert_array_equal(found.gather, gather)
    assert "24 traces left out: other components than vertical" in found.steps
    with pytest.raises(FieldFileError, match="has no pressure component; it has crossline"):
        read(tmp_path / "a.sgy", content, component="pressure")
    with pytest.raises(FieldFileError, match="--component: expected pressure, vertical, .* got 'up'"):
        read(tmp_path / "a.sgy", content, component="up")


def test_repeated_shots_are_refused_or_averaged(tmp_path, gather):
    content = segy_bytes(traces_of(gather) + traces_of(3 * gather))
    with pytest.raises(
        FieldFileError, match="several for 12, first for source 0 receiver 0: a.sgy trace 1, a.sgy"
    ):
        read(tmp_path / "a.sgy", content)
    found = read(tmp_path / "a.sgy", content, stack=True)
    np.testing.assert_array_equal(found.gather, 2 * gather)
    assert "up to 2 repeated shots averaged: sources 0, 1" in found.steps


@pytest.mark.parametrize("first", [True, False])
def test_receivers_between_the_surveys_never_replace_those_at_its_places(tmp_path, gather, first):
    """Receivers 5 m apart on a survey of 10 m, in either order of the file."""
    between = [
        dataclasses.replace(t, samples=0 * t.samples + 9, receiver=(t.receiver[0] + 500, 0))
        for t in traces_of(gather)
    ]
    traces = between + traces_of(gather) if first else traces_of(gather) + between
    found = read(tmp_path / "a.sgy", segy_bytes(traces))
    np.testing.assert_array_equal(found.gather, gather)
    assert "12 of 24 traces" in found.steps[0]
    assert "12 traces left out: between the survey's positions, where others are nearer" in found.steps


def test_every_missing_trace_is_counted_and_named(tmp_path, gather):
    traces = traces_of(gather)
    found = read(tmp_path / "a.sgy", segy_bytes([t for i, t in enumerate(traces) if i not in (3, 9, 5)]))
    assert found.steps[-1] == "3 of 12 traces silent: receiver 3; source 0 receiver 5"


def test_more_than_a_quarter_silent_needs_a_word(tmp_path, gather):
    content = segy_bytes(traces_of(gather)[:8])
    with pytest.raises(
        FieldFileError, match="4 of 12 traces silent: source 1 receivers 2 to 5. .* --allow-silent"
    ):
        read(tmp_path / "a.sgy", content)
    assert n_silent(read(tmp_path / "a.sgy", content, allow_silent=True)) == 4
    one_shot = segy_bytes(traces_of(gather)[:6])
    with pytest.raises(FieldFileError, match=r"no shot at x = 1050 m; its shots are at 1000 m"):
        read(tmp_path / "a.sgy", one_shot)
    found = read(tmp_path / "a.sgy", one_shot, allow_silent=True)
    assert found.steps[-1] == "6 of 12 traces silent: source 1 whole"


def test_a_trace_with_nan_is_silent(tmp_path, gather):
    traces = traces_of(gather)
    broken = traces[4].samples.copy()
    broken[7] = np.nan
    found = read(tmp_path / "a.sgy", segy_bytes(changed(traces, 4, samples=broken)))
    assert n_silent(found) == 1 and "a.sgy trace 5: holds NaN or infinite samples; silent" in found.steps


# Where traces are


@pytest.mark.parametrize("azimuth_deg", [0, 30, 90, 135, 60])
def test_a_line_of_any_azimuth(tmp_path, gather, azimuth_deg):
    """It runs to larger x, or y where it is steeper; cell 0 is where the line begins."""
    turn = np.radians(azimuth_deg)
    at = lambda cell: (  # noqa: E731
        100 * (500_000 + STEP_M * cell * np.sin(turn)),
        100 * (4_512_345 + STEP_M * cell * np.cos(turn)),
    )
    found = read(tmp_path / "a.sgy", segy_bytes(traces_of(gather, at=at)))
    np.testing.assert_array_equal(found.gather, gather)
    assert found.azimuth_deg == pytest.approx(azimuth_deg, abs=0.1)
    assert found.origin_m == pytest.approx((500_000, 4_512_345), abs=0.2)


def test_a_line_against_the_axis_is_turned_round(tmp_path, gather):
    """Places go by coordinates, whatever the order of recording."""
    shift = max(SURVEY.receiver_cells)
    found = read(
        tmp_path / "a.sgy", segy_bytes(traces_of(gather, at=lambda cell: (100 * STEP_M * (shift - cell), 0)))
    )
    np.testing.assert_array_equal(found.gather[0], gather[1][:, ::-1])


def test_an_area_is_no_line(tmp_path, gather):
    places = iter(np.random.default_rng(1).integers(0, 5000, (40, 2)).tolist())
    with pytest.raises(FieldFileError, match="expected a straight line"):
        read(tmp_path / "a.sgy", segy_bytes(traces_of(gather, at=lambda cell: next(places))))


def test_no_positions_at_all(tmp_path, gather):
    with pytest.raises(
        FieldFileError, match="all sources and receivers are at x = 0, y = 0 m; .* bytes 73-88"
    ):
        read(tmp_path / "a.sgy", segy_bytes(traces_of(gather, at=lambda cell: (0, 0))))


def test_feet(tmp_path, gather):
    at = lambda cell: (100 * (1000 + STEP_M * cell) / 0.3048, 0)  # noqa: E731
    found = read(tmp_path / "a.sgy", segy_bytes(traces_of(gather, at=at), fields=[(3255, "h", 2)]))
    np.testing.assert_array_equal(found.gather, gather)
    assert "positions in feet, 0.3048 m each" in found.steps


@pytest.mark.parametrize("units", [2, 4])
def test_degrees(tmp_path, gather, units):
    """Seconds of arc and DDDMMSS.ss, 60 degrees north, where a degree of longitude is half one of latitude."""

    def at(cell):
        longitude = 10.5 + STEP_M * cell / 55_800
        if units == 2:
            return longitude * 3600 * 1000, 60 * 3600 * 1000
        minutes = (longitude - 10) * 60
        packed = 10 * 1e4 + int(minutes) * 1e2 + (minutes - int(minutes)) * 60
        return packed * 1000, 60 * 1e4 * 1000

    traces = traces_of(gather, at=at, scalar=-1000, fields=[(89, "h", units)])
    found = read(tmp_path / "a.sgy", segy_bytes(traces))
    np.testing.assert_array_equal(found.gather, gather)
    assert found.origin_m is None


def test_decimal_degrees(tmp_path, gather):
    """On the meridian, as fine as a scalar allows: 1 / 30,000 of a degree is 3.7 m."""
    at = lambda cell: (10.5 * 30_000, (60 + STEP_M * cell / 111_412) * 30_000)  # noqa: E731
    traces = traces_of(gather, at=at, scalar=-30_000, fields=[(89, "h", 3)])
    np.testing.assert_array_equal(read(tmp_path / "a.sgy", segy_bytes(traces)).gather, gather)


def test_positions_are_printed_with_all_digits(tmp_path, gather):
    at = lambda cell: (100 * (4_512_345.25 + STEP_M * cell), 0)  # noqa: E731
    content = segy_bytes(traces_of(gather, at=at))
    assert "cell 0 at 4512345.25 m" in read(tmp_path / "a.sgy", content).steps[0]
    with pytest.raises(
        FieldFileError, match=r"x = 4512500, 4512550 m; its shots are at 4512345.25, 4512395.25 m"
    ):
        read(tmp_path / "a.sgy", content, origin_m=4_512_500.0)


# Other formats


@pytest.mark.parametrize("order", [">", "<"])
@pytest.mark.parametrize("name", ["a.su", "a.sgy", "a.bin"])
def test_su_whatever_its_name(tmp_path, gather, order, name):
    found = read(tmp_path / name, su_bytes(traces_of(gather), order))
    np.testing.assert_array_equal(found.gather, gather)


@pytest.mark.parametrize("order", [">", "<"])
@pytest.mark.parametrize("kind", [0, 1])
def test_su_of_a_length_that_is_the_same_in_both_byte_orders(tmp_path, gather, order, kind):
    longer = np.concatenate([gather, np.zeros((2, 0x0404 - gather.shape[1], 6), np.float32)], axis=1)
    found = read(tmp_path / "a.su", su_bytes(traces_of(longer, kind=kind), order))
    np.testing.assert_array_equal(found.gather, gather)


@pytest.mark.parametrize("name", ["a.sg2", "a.dat", "a.sgy"])
def test_seg2_whatever_its_name(tmp_path, gather, name):
    pytest.importorskip("obspy", reason="the extra geo is not installed")
    at = lambda cell: (1000 + STEP_M * cell, 0, 3)  # noqa: E731
    early = np.concatenate([np.full((2, 50, 6), 7.0), gather], axis=1)
    kinds = ["SEISMIC_DATA"] * 12
    kinds[3] = "DEAD"
    found = read(tmp_path / name, seg2_bytes(traces_of(early, at=at), delay_s=-0.05, kinds=kinds, factor=0.5))
    assert not found.gather[0, :, 3].any() and n_silent(found) == 1
    np.testing.assert_array_equal(found.gather[:, :, :3], gather[:, :, :3])
    assert "50 ms before the shot cut off" in found.steps and "1 trace left out: dead" in found.steps


def test_seg2_in_feet_and_without_positions(tmp_path, gather):
    pytest.importorskip("obspy", reason="the extra geo is not installed")
    at = lambda cell: ((1000 + STEP_M * cell) / 0.3048,)  # noqa: E731
    found = read(tmp_path / "a.sg2", seg2_bytes(traces_of(gather, at=at), units="FEET"))
    np.testing.assert_array_equal(found.gather, gather)
    with pytest.raises(FieldFileError, match="expected SOURCE_LOCATION on every trace"):
        read(tmp_path / "b.sg2", seg2_bytes(traces_of(gather, at=lambda cell: ())))
    with pytest.raises(FieldFileError, match="not a whole SEG-2 file"):
        read(tmp_path / "c.sg2", seg2_bytes(traces_of(gather, at=at))[:200])


def test_seg2_without_an_interval_and_with_texts_in_place_of_numbers(tmp_path, gather):
    pytest.importorskip("obspy", reason="the extra geo is not installed")
    whole = seg2_bytes(traces_of(gather, at=lambda cell: (1000 + STEP_M * cell,)))
    lacking = whole.replace(b"SAMPLE_INTERVAL", b"XAMPLE_INTERVAL")
    found = read(tmp_path / "a.sg2", lacking, interval_s=1e-3)
    np.testing.assert_array_equal(found.gather, gather)
    with pytest.raises(FieldFileError, match="has no SAMPLE_INTERVAL; give --interval-ms"):
        read(tmp_path / "a.sg2", lacking)
    with pytest.raises(
        FieldFileError, match=r"expected numbers in .* DELAY .*'-'.*; correct them, or export"
    ):
        read(tmp_path / "a.sg2", whole.replace(b"DELAY 0.0", b"DELAY -  "))


def test_one_file_a_shot(tmp_path, gather):
    traces = traces_of(gather)
    (tmp_path / "1.sgy").write_bytes(segy_bytes(traces[:6]))
    (tmp_path / "2.su").write_bytes(su_bytes(traces[6:]))
    found = read_field_gather([tmp_path / "1.sgy", tmp_path / "2.su"], SURVEY)
    np.testing.assert_array_equal(found.gather, gather)
    assert found.steps[0].startswith("12 of 12 traces of 1.sgy, 2.su ")
    with pytest.raises(FieldFileError, match="expected different files"):
        read_field_gather([tmp_path / "1.sgy", tmp_path / "1.sgy"], SURVEY)
    with pytest.raises(FieldFileError, match="expected files with positions or continuous records, got both"):
        pytest.importorskip("pymseed", reason="the extra geo is not installed")
        read_field_gather([tmp_path / "1.sgy", CASES / "30-good.mseed"], SURVEY)


@pytest.mark.parametrize("cut", [100, 3599, 3700, 3600 + 240 + 1999])
@pytest.mark.parametrize("suffix", [".sgy", ".su"])
def test_a_file_that_is_cut_is_no_whole_one(tmp_path, gather, cut, suffix):
    whole = segy_bytes(traces_of(gather)) if suffix == ".sgy" else su_bytes(traces_of(gather))
    with pytest.raises(FieldFileError, match="not a whole SEG-Y file|not a whole SU file"):
        read(tmp_path / f"a{suffix}", whole[:cut])


# miniSEED


@pytest.fixture(scope="module")
def control():
    pytest.importorskip("pymseed", reason="the extra geo is not installed")
    return from_stations(CASES / "30-good.mseed")


def from_stations(path, geometry=CASES / "30-geometry.toml", **options):
    return read_field_gather([path], SURVEY, ImportOptions(geometry=geometry, **options))


@pytest.mark.parametrize("name", ["31-int-then-float", "32-state-of-health", "41-miniseed-3"])
def test_records_that_hold_the_same_give_the_same(control, name):
    np.testing.assert_allclose(from_stations(CASES / f"{name}.mseed").gather, control.gather, rtol=1e-6)


def test_a_receiver_with_a_gap_is_silent_for_that_shot_alone(control):
    found = from_stations(CASES / "34-gap.mseed")
    assert n_silent(found) == 1 and not found.gather[1, :, 3].any()
    np.testing.assert_array_equal(found.gather[0], control.gather[0])
    assert any(
        "receiver 3 (XX.R03..EHZ) is silent for shot 2026-11-25T10:00:02" in step for step in found.steps
    )


def geometry(tmp_path, receivers=None, shots=None):
    import tomllib

    content = tomllib.loads((CASES / "30-geometry.toml").read_text())
    path = tmp_path / "geometry.toml"
    names = receivers if receivers is not None else content["receivers"]
    times = shots if shots is not None else content["shots"]
    # A JSON list of texts and numbers is a TOML list.
    path.write_text(f"receivers = {json.dumps(names)}\nshots = {json.dumps(times)}\n")
    return path


NAMES = [f"XX.R0{i}..EHZ" for i in range(6)]


def test_a_receiver_may_be_left_without_a_channel(tmp_path, control):
    found = from_stations(CASES / "30-good.mseed", geometry(tmp_path, ["", *NAMES[1:]]))
    assert not found.gather[:, :, 0].any()
    np.testing.assert_array_equal(found.gather[:, :, 1:], control.gather[:, :, 1:])


@pytest.mark.parametrize(
    ("receivers", "message"),
    [
        (["R00", *NAMES[1:]], "receiver 'R00': expected a SEED id"),
        (["XX.R0*..EHZ", *NAMES[1:]], "without wildcards"),
        ([7, *NAMES[1:]], "receiver 7: expected a SEED id"),
        ([NAMES[1], *NAMES[1:]], "XX.R01..EHZ twice, as 0 and as 1"),
        (NAMES[1:], 'a list of 6 receivers, got 5; write "" for a receiver without a channel'),
    ],
)
def test_receivers_that_are_no_ids(tmp_path, control, receivers, message):
    with pytest.raises(FieldFileError, match=message):
        from_stations(CASES / "30-good.mseed", geometry(tmp_path, receivers))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("receivers", "recievers", "line 1: unknown key 'recievers'; did you mean 'receivers'"),
        ("shots", "shot_times", "line 2: unknown key 'shot_times'; did you mean 'shots'"),
        ("shots", "azimuth = 3\nshots", "line 2: unknown key 'azimuth'; known are receivers, shots"),
    ],
)
def test_an_unknown_key_of_a_geometry_is_named(tmp_path, control, old, new, message):
    path = geometry(tmp_path)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(FieldFileError, match=message):
        from_stations(CASES / "30-good.mseed", path)


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ("yesterday", "expected a time in ISO 8601 .* got 'yesterday'"),
        ("2016-12-31T23:59:60", "expected a time"),
        ("2026-11-25T25:00:00", "expected a time"),
        ("2026-11-25", "expected a time"),
        (2026, "expected a time"),
        (True, "expected a time"),
        ("2026-11-25T10:00:02.5Z", "named twice, as 0 and as 1"),
    ],
)
def test_shots_that_are_no_times(tmp_path, control, first, message):
    with pytest.raises(FieldFileError, match=message):
        from_stations(CASES / "30-good.mseed", geometry(tmp_path, shots=[first, "2026-11-25T10:00:02.500Z"]))


def test_shots_in_other_zones_and_in_seconds(tmp_path, control):
    for first in ("2026-11-25T12:00:00.5+02:00", "2026-11-25 10:00:00,5", 1_795_600_800.5):
        found = from_stations(
            CASES / "30-good.mseed", geometry(tmp_path, shots=[first, "2026-11-25T10:00:02.500Z"])
        )
        np.testing.assert_array_equal(found.gather, control.gather)


def written(tmp_path, change):
    """The control's stream, changed."""
    obspy = pytest.importorskip("obspy", reason="the extra geo is not installed")
    stream = change(obspy.read(str(CASES / "30-good.mseed")))
    stream.write(str(tmp_path / "a.mseed"), format="MSEED")
    return tmp_path / "a.mseed"


@pytest.mark.filterwarnings("ignore")
def test_another_rate_of_one_receiver(tmp_path, control):
    def change(stream):
        (slow,) = stream.select(station="R02")
        slow.data = slow.data[::2].copy()
        slow.stats.sampling_rate = 500.0
        for trace in stream.select(station="R04"):
            trace.stats.sampling_rate = 999.9999
        return stream

    found = from_stations(written(tmp_path, change))
    assert n_silent(found) == 0 and "resampled from 2 to 1 ms (polyphase)" in found.steps
    peak = np.abs(control.gather).max()
    np.testing.assert_allclose(found.gather[:, 20:-20], control.gather[:, 20:-20], atol=0.01 * peak)


@pytest.mark.filterwarnings("ignore")
def test_a_log_channel_and_repeated_records(tmp_path, control):
    """Text of the recorder, and every record of one receiver twice, as two downloads hold them."""

    def change(stream):
        obspy = pytest.importorskip("obspy")
        log = obspy.Trace(np.frombuffer(b"clock locked", "S1").copy(), {"station": "R00", "channel": "LOG"})
        return stream + log

    path = written(tmp_path, change)
    path.write_bytes(path.read_bytes() + (CASES / "30-good.mseed").read_bytes())
    np.testing.assert_array_equal(from_stations(path).gather, control.gather)


def test_a_damaged_end_is_told(tmp_path, control):
    path = tmp_path / "a.mseed"
    path.write_bytes((CASES / "30-good.mseed").read_bytes()[:-4000])
    found = from_stations(path)
    assert any(
        "a.mseed has parts that are not whole miniSEED records, left out" in step for step in found.steps
    )
    assert found.steps[-1] == "3 of 12 traces silent: receiver 5; source 1 receiver 4"


def test_other_records_of_a_full_seed_volume_are_passed_over(tmp_path, control):
    path = tmp_path / "a.seed.mseed"
    path.write_bytes(b"000001V 0100018 2.4".ljust(512) + (CASES / "30-good.mseed").read_bytes())
    found = from_stations(path)
    np.testing.assert_array_equal(found.gather, control.gather)
    assert any("has parts that are not whole miniSEED records" in step for step in found.steps)


def test_stations_in_several_files(tmp_path, control):
    content = (CASES / "30-good.mseed").read_bytes()
    parts = [tmp_path / f"{i}.mseed" for i in range(2)]
    half = len(content) // 1024 * 512
    parts[0].write_bytes(content[:half])
    parts[1].write_bytes(content[half:])
    found = read_field_gather(parts, SURVEY, ImportOptions(geometry=CASES / "30-geometry.toml"))
    np.testing.assert_array_equal(found.gather, control.gather)


# The command


@pytest.mark.parametrize("gain", ["nan", "inf", "0"])
def test_a_gain_that_is_none(tmp_path, gather, capsys, gain):
    (tmp_path / "a.sgy").write_bytes(segy_bytes(traces_of(gather)))
    command = ["data", "import", str(tmp_path / "a.sgy"), "--survey", str(CASES / "small.toml")]
    assert epic.main([*command, "--out", str(tmp_path / "x.npy"), "--gain", gain]) == 2
    assert "gain: expected a finite number other than 0" in capsys.readouterr().err
    assert not (tmp_path / "x.npy").exists()
    assert epic.main([*command, "--out", str(tmp_path / "x.npy"), "--gain", "1e300"]) == 2
    assert "leaves the range of float32" in capsys.readouterr().err


def test_a_foreign_json_beside_the_gather_is_kept(tmp_path, gather, capsys):
    (tmp_path / "a.sgy").write_bytes(segy_bytes(traces_of(gather)))
    (tmp_path / "keep.json").write_text('{"mine": 1}')
    command = ["data", "import", str(tmp_path / "a.sgy"), "--survey", str(CASES / "small.toml"), "--out"]
    assert epic.main([*command, str(tmp_path / "keep.npy")]) == 2
    assert "another file than the steps of an import" in capsys.readouterr().err
    assert (tmp_path / "keep.json").read_text() == '{"mine": 1}' and not (tmp_path / "keep.npy").exists()
    for _ in range(2):
        assert epic.main([*command, str(tmp_path / "mine.npy")]) == 0
    assert json.loads((tmp_path / "mine.json").read_text())["origin_m"] == [1000.0, 0.0]


def test_an_import_that_is_cut_short_does_not_block_the_next_one(tmp_path, gather, monkeypatch):
    (tmp_path / "a.sgy").write_bytes(segy_bytes(traces_of(gather)))
    command = ["data", "import", str(tmp_path / "a.sgy"), "--survey", str(CASES / "small.toml")]
    command += ["--out", str(tmp_path / "mine.npy")]

    def cut(path, text):
        path.write_bytes(text[:3].encode())
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", cut)
        with contextlib.suppress(KeyboardInterrupt):
            epic.main(command)
    assert not (tmp_path / "mine.json").exists()
    assert epic.main(command) == 0


def test_peaks_are_judged_by_the_surveys_own_model(tmp_path, gather, capsys):
    """A survey of one's own has no released model; the manifest of a bundle tells what its model knows."""
    (tmp_path / "a.sgy").write_bytes(segy_bytes(traces_of(gather)))
    command = ["data", "import", str(tmp_path / "a.sgy"), "--out", str(tmp_path / "x.npy"), "--survey"]
    assert epic.main([*command, str(CASES / "small.toml")]) == 0
    out = capsys.readouterr().out
    assert "peak 96; give --survey the manifest.json" in out and "note" not in out
    manifest = {
        "acquisition": SURVEY.to_dict(),
        "companding": {"k": 20.0, "c": float(np.arcsinh(20 * 1000.0))},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert epic.main([*command, str(tmp_path / "manifest.json")]) == 0
    out = capsys.readouterr().out
    assert "peaks of 400 to 1200" in out and "Import again with --gain 8.3\n" in out


def test_a_reversed_gather_is_noticed(tmp_path, gather, capsys):
    (tmp_path / "a.sgy").write_bytes(segy_bytes(traces_of(-gather)))
    command = ["data", "import", str(tmp_path / "a.sgy"), "--survey", str(CASES / "small.toml")]
    assert epic.main([*command, "--out", str(tmp_path / "x.npy")]) == 0
    out = capsys.readouterr().out
    assert "note: polarity looks reversed" in out and "Import again with --gain -1\n" in out
    assert epic.main([*command, "--out", str(tmp_path / "x.npy"), "--gain", "-1"]) == 0
    assert "polarity" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["sheet", "a.jpg.txt"], "expected a .png file"),
        (["sheet", "no/such/a.png"], "expected a .png file in a folder that exists"),
        (["sheet", "a.png", "--columns", "0"], "greater than or equal to 1"),
    ],
)
def test_a_sheet_that_cannot_be_drawn(tmp_path, capsys, monkeypatch, command, said):
    monkeypatch.chdir(tmp_path)
    assert epic.main(["data", *command]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_the_released_survey_judges_half_a_spread(tmp_path):
    """Import 24 receivers, 20 m apart, onto the survey of 70 receivers."""
    survey = Acquisition.openfwi()
    samples = np.ones(survey.n_time)
    traces = [
        Trace(samples, (1000 * source, 0), (2000 * receiver, 0))
        for source in survey.source_cells
        for receiver in range(24)
    ]
    (tmp_path / "a.sgy").write_bytes(segy_bytes(traces))
    with pytest.raises(FieldFileError, match="230 of 350 traces silent: receivers 1, 3, .* --allow-silent"):
        read_field_gather([tmp_path / "a.sgy"], survey)
    found = read_field_gather([tmp_path / "a.sgy"], survey, ImportOptions(allow_silent=True))
    assert found.silent_share == pytest.approx(46 / 70)
