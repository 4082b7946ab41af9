"""The whole line: five device processes and a centre with the released model."""

import json
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest

import epic
from firmware_py.inference.bundle import create_bundle, load_bundle
from testbed.run import DEFAULT_MODEL
from testbed.samples import load_samples

pytestmark = pytest.mark.slow

RELEASED = DEFAULT_MODEL


def run(capsys, *arguments: str) -> tuple[int, dict | None, str]:
    """Exit code, results and the last line on standard error of ``epic testbed run``."""
    code = epic.main(["testbed", "run", "--json", *arguments])
    shown = capsys.readouterr()
    errors = shown.err.strip().splitlines()
    return code, json.loads(shown.out) if code == 0 else None, errors[-1] if errors else ""


def test_twenty_events_of_all_families(capsys, tmp_path):
    """20 maps, all devices heard, none lost; with CURVE each record and answer costs 33 bytes more.

    Each device's first words (hello, health) are among the bytes: of so short a run they are some 5 %.
    """
    code, results, _ = run(capsys, "--events", "20", "--out", str(tmp_path / "run"))
    assert code == 0
    assert results["links"] == "zmq with CURVE"
    total = results["total"]
    assert total["maps"] == 20
    assert total["devices_present"] == [0, 1, 2, 3, 4]
    assert total["lost"] == 0
    assert total["bytes_an_event"] <= 1750
    assert total["raw_bytes_an_event"] == 1_400_000
    # 38 bytes of header and 128 of latent a device, and what ZeroMQ and CURVE add.
    assert 5 * (38 + 128) < total["record_bytes_an_event"] <= 1050
    assert len({row["family"] for row in results["events"]}) == 10
    for row in results["events"]:
        assert row["devices"] == [0, 1, 2, 3, 4]
        assert 0 < row["mae"] < 1
        assert row["misfit"] is None
        assert all(value >= 0 for value in row["ms"].values())
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"results.json", "maps-1.png", "maps-2.png", "central.jsonl", "device4.jsonl"} <= names
    mean_map_mae = np.mean([np.abs(s.map_mps - 3000).mean() / 1500 for s in load_samples()])
    assert total["mae"] < 0.6 * mean_map_mae, "the maps are of the earth that was recorded"


def test_a_gather_without_a_map_gets_its_data_misfit(capsys, tmp_path):
    sample = load_samples()[6]
    assert sample.family == "flatvel_a"
    np.save(tmp_path / "mine.npy", sample.gather.astype(np.float16))
    code, results, _ = run(capsys, "--data", str(tmp_path / "mine.npy"), "--out", str(tmp_path / "run"))
    assert code == 0
    (row,) = results["events"]
    assert row["mae"] is row["ssim"] is None
    assert 0 < row["misfit"] < 1.0, "better than explaining nothing of the recording"
    assert (tmp_path / "run" / "maps-1.png").stat().st_size > 10_000


def test_the_shipped_gathers_are_not_of_every_survey(capsys, tmp_path):
    shutil.copytree(RELEASED, tmp_path / "model")
    manifest = tmp_path / "model" / "bundle" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["acquisition"]["n_time"] = 800
    manifest.write_text(json.dumps(content))
    code, _, error = run(capsys, "--model", str(tmp_path / "model"), "--out", str(tmp_path / "run"))
    assert code == 2 and "give gathers of its own with --data" in error
    assert not (tmp_path / "run").exists()


def test_a_device_with_another_encoder_is_refused_by_name(capsys, tmp_path):
    released = load_bundle(RELEASED / "bundle")
    # A flatbuffer ignores what follows it: the same network, another file, another hash.
    other = released.encoder_path.read_bytes() + bytes(16)
    fields = {k: v for k, v in released.manifest.items() if k not in ("format", "files", "model_hash")}
    create_bundle(tmp_path / "other", other, fields)
    code, _, error = run(
        capsys, "--events", "1", "--bundle", str(tmp_path / "other"), "--out", str(tmp_path / "run")
    )
    assert code == 2
    assert error.startswith("error: device")
    assert "is none of the centre's" in error


def test_a_port_in_use(capsys, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, error = run(capsys, "--events", "1", "--port", str(port), "--out", str(tmp_path / "run"))
    assert code == 2
    assert f"tcp://127.0.0.1:{port}: cannot listen there" in error


def test_a_decoder_of_another_conversion(capsys, tmp_path):
    shutil.copytree(RELEASED, tmp_path / "mixed")
    about = tmp_path / "mixed" / "decoder" / "decoder.json"
    about.write_text(about.read_text().replace(load_bundle(RELEASED / "bundle").model_hash.hex(), "00" * 8))
    code, _, error = run(
        capsys, "--events", "1", "--model", str(tmp_path / "mixed"), "--out", str(tmp_path / "run")
    )
    assert code == 2
    assert "does not belong to" in error


def flawed(folder: Path, how: str) -> Path:
    path = folder / "data1.npy"
    gather = load_samples()[0].gather[None].copy()
    if how == "shape":
        gather = gather[:, :, :500]
    elif how == "nan":
        gather[0, 0, 0, 0] = np.nan
    if how != "missing":
        np.save(path, gather)
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    if how == "maps":
        np.save(folder / "model1.npy", np.full((2, 1, 70, 70), 2000, np.float32))
    return path


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "not found; expected an OpenFWI .npy file of gathers"),
        ("truncated", "not a whole .npy file"),
        ("shape", "expected floating gathers of shape (n, 5, 1000, 70), got float32 (1, 5, 500, 70)"),
        ("nan", "event 1: 1 samples are NaN or infinite"),
        ("maps", "expected 1 maps, one for each gather of data1.npy, got 2"),
    ],
)
def test_flawed_recordings_are_one_clear_line(capsys, tmp_path, how, message):
    path = flawed(tmp_path, how)
    code, _, error = run(capsys, "--data", str(path), "--out", str(tmp_path / "run"))
    assert code == 2
    assert error.startswith("error: ")
    assert message in error


def test_a_folder_that_is_no_run_is_left_alone(capsys, tmp_path):
    (tmp_path / "precious.txt").write_text("data")
    code, _, error = run(capsys, "--events", "1", "--out", str(tmp_path))
    assert code == 2
    assert "exists and is not a testbed run" in error
    assert (tmp_path / "precious.txt").read_text() == "data"


def test_the_folder_of_a_centre_at_work_is_left_alone(capsys, tmp_path):
    (tmp_path / "central.toml").write_text("[central]\n")
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "centre.secret").write_text("secret")
    code, _, error = run(capsys, "--events", "1", "--out", str(tmp_path))
    assert code == 2
    assert "exists and is not a testbed run" in error
    assert (tmp_path / "keys" / "centre.secret").read_text() == "secret"


def test_a_run_folder_that_is_a_file_or_cannot_be_made_is_one_line(capsys, tmp_path):
    (tmp_path / "file").write_text("data")
    code, _, error = run(capsys, "--events", "1", "--out", str(tmp_path / "file"))
    assert (code, error[:7]) == (2, "error: ")
    assert (tmp_path / "file").read_text() == "data"
    code, _, error = run(capsys, "--events", "1", "--out", str(tmp_path / "file" / "run"))
    assert (code, error[:7]) == (2, "error: ")
    assert "Not a directory" in error
