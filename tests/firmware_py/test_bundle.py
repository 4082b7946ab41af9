"""A bundle is trusted only when every file in it is what its manifest says."""

import errno
import json

import numpy as np
import pytest
from tiny import ENCODER, bundle_fields

from firmware_py.inference.bundle import BundleError, create_bundle, load_bundle
from firmware_py.inference.companding import GatherError
from firmware_py.inference.encoder import Encoder, EncoderError


def edit(bundle, **changes):
    path = bundle.folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_round_trip(bundle):
    again = load_bundle(bundle.folder)
    assert again == bundle
    assert again.model_hash.hex() == again.manifest["files"]["encoder.tflite"]["sha256"][:16]
    assert again.width == 3


def test_replacing_a_bundle_leaves_one_whole_bundle(bundle):
    fields = {**bundle_fields(), "name": "second"}
    assert create_bundle(bundle.folder, ENCODER, fields, {"note.txt": b"hello"}).name == "second"
    assert sorted(p.name for p in bundle.folder.iterdir()) == ["encoder.tflite", "manifest.json", "note.txt"]
    assert [p.name for p in bundle.folder.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_file_is_named(bundle, damage):
    data = bytearray(bundle.encoder_path.read_bytes())
    data[100] ^= 1
    if damage == "flip":
        bundle.encoder_path.write_bytes(data)
    elif damage == "truncate":
        bundle.encoder_path.write_bytes(data[:-1])
    else:
        bundle.encoder_path.unlink()
    with pytest.raises(BundleError, match=r"encoder.tflite: .*copy the bundle again"):
        load_bundle(bundle.folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "epic-bundle/9"}, "expected format epic-bundle/1, got epic-bundle/9"),
        ({"model_hash": "00" * 8}, "model_hash 0000000000000000 is not that of encoder.tflite"),
        ({"files": {}}, "names no encoder.tflite"),
        (
            {"files": {"../secret": {"sha256": ""}, "encoder.tflite": {"sha256": ""}}},
            "leaves the bundle's folder",
        ),
        ({"input": {"shape": [1]}}, "not a whole manifest"),
        ({"output": {"shape": [8], "scale": 1, "zero_point": 0}}, r"expected input .* output \(1, latent\)"),
        ({"companding": {"k": 0, "c": 1, "thin": 1}}, "not a whole manifest"),
        ({"companding": {"k": 1, "c": 1, "thin": float("inf")}}, "not a whole manifest"),
        ({"input": {"shape": [1, float("inf"), 3, 5], "scale": 1, "zero_point": 0}}, "not a whole manifest"),
        ({"input": {"shape": [1, 1, 3, 5], "scale": 10**400, "zero_point": 0}}, "not a whole manifest"),
        ({"input": {"shape": [1, 1, 3, 5], "scale": 1, "zero_point": float("inf")}}, "not a whole manifest"),
        ({"files": {"encoder.tflite": {"sha256": 5}}}, "the manifest says 5"),
    ],
)
def test_a_manifest_that_lies_is_refused(bundle, changes, message):
    edit(bundle, **changes)
    with pytest.raises(BundleError, match=message):
        load_bundle(bundle.folder)


def test_no_bundle_and_no_json(tmp_path, bundle):
    with pytest.raises(BundleError, match="expected a bundle folder"):
        load_bundle(tmp_path / "nothing")
    for text in ("{", "[" * 100_000):
        (bundle.folder / "manifest.json").write_text(text)
        with pytest.raises(BundleError, match="not a whole manifest"):
            load_bundle(bundle.folder)


def test_a_bundle_on_a_failing_disk(bundle, monkeypatch):
    def fail(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(type(bundle.folder), "read_bytes", fail)
    with pytest.raises(BundleError, match=r"bundle: cannot be read \(Input/output error\)"):
        load_bundle(bundle.folder)


def test_encoding_is_deterministic_and_depends_on_the_recording(bundle, gathers):
    encoder = Encoder(bundle)
    latents = [encoder.encode_recording(gather[:, :, :3]) for gather in gathers]
    assert latents[0].shape == (8,)
    assert latents[0].dtype == np.int8
    np.testing.assert_array_equal(latents[0], Encoder(bundle).encode_recording(gathers[0, :, :, :3]))
    assert any((latents[0] != other).any() for other in latents[1:])


def test_a_recording_that_cannot_be_encoded(bundle, gathers):
    gathers[0, 0, 0, 0] = np.nan
    with pytest.raises(GatherError, match="NaN"):
        Encoder(bundle).encode_recording(gathers[0, :, :, :3])


def test_a_model_that_is_not_what_the_manifest_says(bundle):
    edit(bundle, input={**bundle.manifest["input"], "scale": 0.5})
    with pytest.raises(EncoderError, match=r"input is int8 .* the manifest says int8 .*0.5"):
        Encoder(load_bundle(bundle.folder))


def test_a_recording_of_another_survey(bundle, gathers):
    with pytest.raises(GatherError, match=r"expected what thins to \(10, 3, 2\).*got \(5, 3, 2\)"):
        Encoder(bundle).encode_recording(gathers[0, :, :50, :3])


def test_the_runtime_says_nothing_of_its_own(bundle, capfd):
    Encoder(bundle)
    assert capfd.readouterr() == ("", "")
