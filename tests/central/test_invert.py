"""An archive inverted without devices: the maps that a line of devices would make, on one process or many."""

import json

import keras
import numpy as np
import pytest
from dask_cluster import two_processes
from tiny import SHAPE, save_release

import epic
from central.pipeline.invert import CHUNK_EVENTS, InvertError, invert_archive
from firmware_py.inference.bundle import load_bundle
from firmware_py.inference.encoder import Encoder
from models.inversion.decoder import load_decoder
from models.networks.fusion import DecoderConfig, build_decoder
from physics.acquisition import Acquisition
from physics.files.openfwi_files import OpenFWIFileError
from physics.gather_checks import expected_peaks

pytestmark = pytest.mark.slow

SURVEY = Acquisition.from_dict(
    {
        **Acquisition.openfwi().to_dict(),
        "n_depth": 20,
        "n_width": 20,
        "n_time": SHAPE[1],
        "source_cells": [0, 5],
        "receiver_cells": list(range(SHAPE[2])),
        "device_receivers": [[0, 1, 2], [3, 4, 5]],
    }
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A bundle and a decoder that belong together, so small that they load in a second."""
    folder = tmp_path_factory.mktemp("model")
    keras.utils.set_random_seed(0)
    shape = DecoderConfig(2, 8, 20, 20, width=16, heads=2, self_layers=1, cross_layers=1)
    save_release(folder, build_decoder(shape), SURVEY)
    return folder


def gathers(count, seed=0):
    return np.random.default_rng(seed).normal(0, 5, (count, *SHAPE)).astype(np.float32)


@pytest.fixture
def archive(tmp_path):
    """OpenFWI's layout with the maps beside the gathers, and a folder of single gathers."""
    folder = tmp_path / "archive"
    for name in ("FlatVel_A", "field"):
        (folder / name).mkdir(parents=True)
    np.save(folder / "FlatVel_A" / "data1.npy", gathers(CHUNK_EVENTS + 3))
    np.save(folder / "FlatVel_A" / "model1.npy", np.full((CHUNK_EVENTS + 3, 1, 20, 20), 2000.0, np.float32))
    for event in (1, 2):
        np.save(folder / "field" / f"shot-{event}.npy", gathers(1, event)[0])
    return folder


def contents(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.npy"))}


def test_maps_are_those_of_devices_and_centre(model, archive, tmp_path):
    told = []
    files = invert_archive(
        archive, model, tmp_path / "out", on_progress=lambda done, total: told.append((done, total))
    )
    assert [str(path.relative_to(tmp_path / "out")) for path in files] == [
        "FlatVel_A/data1-velocity.npy",
        "field/shot-1-velocity.npy",
        "field/shot-2-velocity.npy",
    ]
    assert (told[0], told[-1]) == ((0, CHUNK_EVENTS + 5), (CHUNK_EVENTS + 5, CHUNK_EVENTS + 5))
    encoder, decoder = Encoder(load_bundle(model / "bundle")), load_decoder(model / "decoder")
    for path, several in ((files[0], gathers(CHUNK_EVENTS + 3)), (files[2], gathers(1, 2))):
        velocity, uncertainty = np.load(path), np.load(str(path).replace("velocity", "uncertainty"))
        assert velocity.shape == uncertainty.shape == (len(several), *SURVEY.map_shape)
        for row in (0, len(several) - 1):
            latents = np.stack(
                [encoder.encode_recording(several[row][:, :, list(g)]) for g in SURVEY.device_receivers]
            )
            expected = decoder.decode(latents, np.ones(2, bool))
            np.testing.assert_allclose(velocity[row], expected[0], atol=0.5)
            np.testing.assert_allclose(uncertainty[row], expected[1], rtol=1e-3)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["model"], manifest["unit"]) == ("tiny", "m/s") and manifest["versions"]


@pytest.mark.long
def test_a_cluster_makes_the_same_maps_to_the_last_bit(model, archive, tmp_path):
    with two_processes() as scheduler:
        invert_archive(archive, model, tmp_path / "many", scheduler)
        np.save(archive / "field" / "shot-3.npy", np.full(SHAPE, np.nan, np.float32))
        with pytest.raises(InvertError, match=r"shot-3\.npy: gather 0: "):
            invert_archive(archive / "field" / "shot-3.npy", model, tmp_path / "bad", scheduler)
    (archive / "field" / "shot-3.npy").unlink()
    invert_archive(archive, model, tmp_path / "one")
    one, many = contents(tmp_path / "one"), contents(tmp_path / "many")
    assert len(one) == 6 and one == many


def test_what_is_there_is_left_and_what_is_missing_made_again(model, archive, tmp_path):
    out = tmp_path / "out"
    invert_archive(archive, model, out)
    before = contents(out)
    kept, gone = out / "field/shot-1-velocity.npy", out / "FlatVel_A/data1-uncertainty.npy"
    stamp = kept.stat().st_mtime_ns
    gone.unlink()
    told = []
    invert_archive(archive, model, out, on_progress=lambda done, total: told.append(done))
    assert contents(out) == before and kept.stat().st_mtime_ns == stamp
    assert told[0] == 2


@pytest.mark.parametrize(
    ("break_it", "error", "said"),
    [
        (
            lambda archive, out: np.save(archive / "x.npy", np.zeros((3, 4), "f4")),
            OpenFWIFileError,
            "x.npy: expected",
        ),
        (
            lambda archive, out: np.save(archive / "x.npy", np.zeros((0, *SHAPE), "f4")),
            InvertError,
            "no gathers",
        ),
        (
            lambda archive, out: (out.mkdir(), (out / "manifest.json").write_text('{"model": "other"}')),
            InvertError,
            "it holds maps of model other; choose another --out",
        ),
        (
            lambda archive, out: (out.mkdir(), (out / "manifest.json").write_text('{"model": "oth')),
            InvertError,
            "manifest.json: cannot be read",
        ),
        (
            lambda archive, out: (out.mkdir(), (out / "manifest.json").write_text("7")),
            InvertError,
            "manifest.json: cannot be read",
        ),
    ],
)
def test_what_cannot_be_inverted_is_told_first(model, archive, tmp_path, break_it, error, said):
    out = tmp_path / "out"
    break_it(archive, out)
    with pytest.raises(error, match=said):
        invert_archive(archive, model, out)
    assert not list(out.rglob("*.npy"))


def test_the_command_and_its_errors_are_one_line(model, archive, tmp_path, capsys):
    command = ["invert", str(archive / "field"), "--model", str(model)]
    assert epic.main([*command, "--out", str(tmp_path / "out"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["files"]) == 2
    for arguments, said in (
        ([*command, "--out", str(archive / "field" / "maps")], "lies in the archive"),
        (
            ["invert", str(tmp_path), "--model", str(tmp_path), "--out", "x"],
            "or a folder with bundle/ and decoder/",
        ),
        (["invert", str(tmp_path / "no.npy"), "--model", str(model), "--out", "x"], "no.npy: not found"),
    ):
        assert epic.main(arguments) == 2
        shown = capsys.readouterr().err.strip().splitlines()
        assert said in shown[-1] and shown[-1].startswith("error: ")


def test_gathers_whose_maps_will_be_wrong_are_noted(model, tmp_path, capsys):
    """All-zero, of a wrong gain: drawn, as the rest of the archive is, but not without a word."""
    full_scale = expected_peaks(bundle_full_scale(model))[1] / 1.2
    archive = gathers(4)
    archive /= np.abs(archive).max(axis=(1, 2, 3), keepdims=True) / full_scale
    archive[1] = 0
    archive[2] /= 300
    np.save(tmp_path / "a.npy", archive)
    assert (
        epic.main(["invert", str(tmp_path / "a.npy"), "--model", str(model), "--out", str(tmp_path / "out")])
        == 0
    )
    err = capsys.readouterr().err
    assert "a.npy: gather 1: every sample is zero" in err
    assert "a.npy: gather 2: peak " in err and "gather 0: peak" not in err and "gather 3: peak" not in err


def bundle_full_scale(model):
    companding = load_bundle(model / "bundle").companding
    return np.sinh(companding.c) / companding.k
