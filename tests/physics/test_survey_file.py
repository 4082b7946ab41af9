"""A survey as its owner writes it, and what is said of one that cannot be."""

import json

import numpy as np
import pytest

import epic
from physics.acquisition import Acquisition, AcquisitionError
from physics.files.survey_file import read_survey

OWN = """
[map]
cell_m = 10
width_m = 750
depth_m = 400
velocity_mps = [1400, 4000]
[record]
length_s = 0.8
interval_ms = 1
peak_frequency_hz = 12
[sources]
x_m = [20, 374, 720]
depth_m = 20
[receivers]
x_m = { first = 20, step = 20, count = 36 }
depth_m = 0.1
[devices]
receivers = [[0, 11], [12, 13, 14], [15, 35]]
"""


def written(folder, text):
    path = folder / "survey.toml"
    path.write_text(text)
    return path


def test_metres_become_cells(tmp_path):
    survey = read_survey(written(tmp_path, OWN))
    assert survey.map_shape == (1, 40, 75) and survey.gather_shape == (3, 800, 36)
    assert survey.source_cells == (2, 37, 72) and survey.source_row == 2
    assert survey.receiver_cells == tuple(range(2, 74, 2)) and survey.receiver_row == 0
    assert survey.distance_m(survey.receiver_cells).tolist() == [20.0 * n for n in range(1, 37)]
    assert [len(group) for group in survey.device_receivers] == [12, 3, 21]
    assert (survey.velocity_min_mps, survey.velocity_max_mps) == (1400.0, 4000.0)
    assert (survey.dt_s, survey.peak_frequency_hz) == (1e-3, 12.0)


def test_what_is_left_out_is_the_benchmarks(tmp_path):
    assert read_survey(written(tmp_path, "")) == Acquisition.openfwi()
    assert read_survey(written(tmp_path, "[devices]\ncount = 7\n")) == Acquisition.openfwi(7)


@pytest.mark.parametrize("lacking", ["sources", "receivers"])
def test_positions_are_given_in_metres_where_cells_are_not_the_benchmarks(tmp_path, lacking):
    text = "[map]\ncell_m = 5\nwidth_m = 700\ndepth_m = 700\nvelocity_mps = [1500, 4500]\n"
    text += "[record]\nlength_s = 1\ninterval_ms = 0.5\npeak_frequency_hz = 15\n"
    sections = {
        "sources": "[sources]\nx_m = [0, 690]\ndepth_m = 10\n",
        "receivers": "[receivers]\nx_m = { first = 0, step = 10, count = 70 }\ndepth_m = 10\n",
    }
    assert read_survey(written(tmp_path, text + "".join(sections.values()))).source_cells == (0, 138)
    del sections[lacking]
    with pytest.raises(AcquisitionError, match=rf"\[{lacking}\]: expected with cells of 5 m, got none"):
        read_survey(written(tmp_path, text + "".join(sections.values())))
    of_ten_metres = text.replace("cell_m = 5", "cell_m = 10").replace("= 0.5", "= 1")
    assert read_survey(written(tmp_path, of_ten_metres)) == Acquisition.openfwi()


def test_the_file_written_out_in_the_docstring_is_the_benchmarks(tmp_path):
    from physics.files import survey_file

    example = survey_file.__doc__.split("::\n", 1)[1]
    lines = [line.strip() for line in example.splitlines()]
    assert read_survey(written(tmp_path, "\n".join(lines))) == Acquisition.openfwi()


def test_a_manifest_has_its_survey(tmp_path):
    survey = Acquisition.openfwi(3)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({"format": "epic-bundle/1", "acquisition": survey.to_dict()}))
    assert read_survey(path) == survey


@pytest.mark.parametrize(
    ("find", "put", "said"),
    [
        ("cell_m = 10", "cell_m = -1", "map.cell_m: expected a positive number, got -1"),
        (
            "width_m = 750",
            "width_m = 745",
            "map.width_m: expected a whole multiple of 5 cells, 50 m, got 745",
        ),
        ("[1400, 4000]", "[4000, 1400]", "map.velocity_mps: expected [slowest, fastest]"),
        (
            "interval_ms = 1",
            "interval_ms = 2",
            "record.interval_ms: steps of 2 ms on cells of 10 m carry up to 3062",
        ),
        (
            "[20, 374, 720]",
            "[20, 24, 720]",
            "sources.x_m: expected places from left to right, no two in one cell",
        ),
        (
            "cell_m = 10",
            "cell_m = 1e-320",
            "map.cell_m: expected a number of 1e-06 to 1e+09, got 1e-320; mind the",
        ),
        ("interval_ms = 1", "interval_ms = 1e300", "record.interval_ms: expected a number of 1e-06 to 1e+09"),
        ("[20, 374, 720]", "[20, nan, 720]", "sources.x_m: expected finite positions in metres, got nan"),
        ("step = 20", "step = inf", "receivers.x_m: expected finite positions in metres, got "),
        ("first = 20", "first = -1e300", "receivers.x_m: expected finite positions in metres, got -1e+300"),
        ("[20, 374, 720]", '"20"', "sources.x_m: expected a list of metres"),
        ("[20, 374, 720]", "[20, 374, 760]", "source_cells: expected cells within 0..74"),
        ("depth_m = 20", "depth_m = 500", "source_row: expected a row within 0..39"),
        ("[15, 35]", "[15, 34]", "expected every receiver 0..35 exactly once"),
        ("[15, 35]", "[]", "devices: expected count = 1 to 36"),
        ("receivers = [[0, 11]", "count = 3\nreceivers = [[0, 11]", "devices: expected count = 1 to 36"),
        ("[devices]", "[device]", "line 17: [device]: did you mean 'devices'? expected sections map, record"),
        ("length_s", "length", "line 8: record.length: did you mean 'length_s'? expected length_s, interval"),
        (
            "length_s = 0.8",
            "length_s = 0.0001",
            "record.length_s: expected at least a period of the source, 0.0833 s, and two samples, got 0.0001 s",
        ),
        ("[map]", "[map", "cannot be read"),
    ],
)
def test_what_cannot_be_is_one_line_that_names_the_place(tmp_path, capsys, find, put, said):
    assert find in OWN
    path = written(tmp_path, OWN.replace(find, put, 1))
    with pytest.raises(AcquisitionError):
        read_survey(path)
    assert epic.main(["data", "survey", str(path)]) == 2
    shown = capsys.readouterr().err
    assert said in shown and str(path) in shown and shown.count("\n") == 1


@pytest.mark.parametrize("text", ["[]", "{}", '{"acquisition": {}}', '{"acquisition": {"n_depth": "x"}}'])
def test_a_manifest_without_survey_is_refused(tmp_path, text):
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(AcquisitionError):
        read_survey(path)


def test_the_command_says_what_follows(tmp_path, capsys):
    assert epic.main(["data", "survey", str(written(tmp_path, OWN.replace("= 12", "= 24")))]) == 0
    out = capsys.readouterr().out
    assert "40 x 75 cells of 10 m" in out and "device 1   receivers 12 to 14, 260 to 300 m" in out
    assert "note: expected at least 8 cells a wavelength" in out


def test_data_are_made_for_it(tmp_path):
    small = "[map]\ncell_m=10\nwidth_m=200\ndepth_m=100\nvelocity_mps=[1500,4500]\n"
    small += "[record]\nlength_s=0.1\ninterval_ms=1\npeak_frequency_hz=15\n"
    small += "[sources]\nx_m=[0]\ndepth_m=10\n[receivers]\nx_m=[0, 50, 190]\ndepth_m=10\n[devices]\ncount=2\n"
    path = written(tmp_path, small)
    arguments = ["data", "generate", "style_a", "--count", "2", "--workers", "1", "--survey", str(path)]
    assert epic.main([*arguments, "--out", str(tmp_path / "data")]) == 0
    assert np.load(tmp_path / "data" / "Style_A" / "data1.npy").shape == (2, 1, 100, 3)
    assert read_survey(tmp_path / "data" / "manifest.json") == read_survey(path)


def test_a_survey_seen_from_behind():
    def changed(**values):
        return Acquisition.from_dict({**Acquisition.openfwi().to_dict(), **values})

    shots, receivers = Acquisition.openfwi().mirror_order()
    assert Acquisition.openfwi().twin_cells == (35,)
    assert shots.tolist() == [4, 3, 5, 1, 0]
    assert receivers.tolist() == list(range(69, -1, -1))
    assert changed(receiver_cells=list(range(60)), device_receivers=[list(range(60))]).mirror_order() is None
    assert changed(source_cells=[10, 59]).twin_cells == ()
