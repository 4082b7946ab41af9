"""A new family, export format and board: one file and one line each, as CONTRIBUTING.md says."""

import numpy as np

from boards.profile import PROFILE_FOLDER, board_names, load_board
from central.export import formats
from central.export.formats import Format, export_map, format_of
from central.storage.map_store import StoredMap
from physics.acquisition import Acquisition
from physics.families import generate_map
from physics.families.family import Family
from physics.families.registry import REGISTRY

SURVEY = Acquisition.openfwi()


def test_a_family_is_a_generator_and_a_line(monkeypatch):
    def draw(rng, frame):
        return np.where(np.hypot(frame.z - 35, frame.x - 35) < rng.uniform(5, 20), 1.0, 0.2)

    monkeypatch.setitem(REGISTRY, "salt", Family("salt", draw, "model{}.npy"))
    velocity_mps = generate_map("Salt", 1, 0, SURVEY)
    assert velocity_mps.shape == SURVEY.map_shape
    assert set(np.unique(velocity_mps)) == {2100.0, 4500.0}


def test_an_export_format_is_a_writer_and_a_line(monkeypatch, tmp_path):
    def write_csv(path, stored, acquisition, line):
        np.savetxt(path, stored.velocity_mps, delimiter=",")

    monkeypatch.setitem(formats.FORMATS, "csv", Format((".csv",), write_csv))
    out = tmp_path / "map.csv"
    stored = _stored(np.full((70, 70), 2000.0, np.float32))
    export_map(stored, format_of(out), out)
    np.testing.assert_array_equal(np.loadtxt(out, delimiter=","), stored.velocity_mps)


def test_a_board_is_a_file(tmp_path):
    text = (PROFILE_FOLDER / "esp32-s3-esp-idf.toml").read_text()
    text = text.replace('name = "esp32-s3-esp-idf"', 'name = "my-board"')
    (tmp_path / "my-board.toml").write_text(text.replace('size = "192 KiB"', 'size = "64 KiB"'))
    assert board_names(tmp_path) == ("my-board",)
    assert load_board("my-board", tmp_path).arena_limit.size == 64 * 1024


def _stored(velocity_mps):
    values = dict.fromkeys(StoredMap.__dataclass_fields__, 0)
    values |= {
        "velocity_mps": velocity_mps,
        "uncertainty_mps": velocity_mps,
        "provenance": {"acquisition": SURVEY.to_dict(), "devices": []},
        "partial": False,
    }
    return StoredMap(**values)
