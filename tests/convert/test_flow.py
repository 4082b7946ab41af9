import json
import shutil
import subprocess

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="conversion needs the train extra")

import convert.flow  # noqa: E402
from boards.fit import tflm  # noqa: E402
from boards.fit.epicnn import compile_encoder, read_memory  # noqa: E402
from convert.errors import ConversionError  # noqa: E402
from convert.flow import convert_run  # noqa: E402
from convert.verify import GOLDEN_VECTORS  # noqa: E402
from firmware_py.inference.bundle import load_bundle  # noqa: E402
from firmware_py.inference.encoder import Encoder  # noqa: E402
from firmware_py.inference.self_test import read_vectors  # noqa: E402
from models.data.gathers import load_decimated  # noqa: E402
from models.inversion.decoder import load_decoder  # noqa: E402
from models.networks.nested_latent import prefix_rates  # noqa: E402
from models.training.run_config import read_config  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def converted(tiny_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("zoo") / "tiny"
    return convert_run(tiny_run.folder, out, c_array=True)


def edit_network(path, change):
    network = keras.models.load_model(path, compile=False)
    change(network)
    network.save(path)


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_device_and_the_centre_can_use_what_was_written(converted, tiny_run):
    bundle = load_bundle(converted.out / "bundle")
    decoder = load_decoder(converted.out / "decoder")
    assert bundle.model_hash.hex() == decoder.model_hash == converted.model_hash
    assert bundle.manifest["decoder_sha256"] == decoder.sha256
    gather = np.load(tiny_run.data / "FlatVel_A" / "data1.npy")[0]
    encoder = Encoder(bundle)
    latents = [
        encoder.encode_recording(gather[:, :, list(group)]) for group in tiny_run.acquisition.device_receivers
    ]
    velocity, uncertainty = decoder.decode(np.stack(latents), np.array([True, True]))
    assert velocity.shape == uncertainty.shape == tiny_run.acquisition.map_shape


def test_uncertainty_is_calibrated_by_watched_samples_whatever_is_held_out(tiny_run, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(convert.flow, "calibrate_uncertainty", lambda *arguments: given.append(arguments))
    held_out = tmp_path / "data"
    shutil.copytree(tiny_run.data, held_out)
    # Nothing was learnt, so the mean map may be as good.
    monkeypatch.setattr(convert.verify, "MIN_TEST_SAMPLES", 1000)
    convert_run(tiny_run.folder, tmp_path / "tiny", held_out=(held_out,))
    ((_, latents, maps),) = given
    # Of 200 samples every 50th is kept from training.
    assert latents.shape == (4, 2, 16) and maps.shape == (4, 10, 20)
    known = load_decimated([tiny_run.data], tiny_run.acquisition, read_config(tiny_run.folder).thin).maps[
        49::50
    ]
    np.testing.assert_array_equal(maps, known)


def test_the_manifest_says_what_was_measured(converted, tiny_run):
    manifest = json.loads((converted.out / "bundle" / "manifest.json").read_text())
    assert manifest["input"]["shape"] == [1, 20, 10, 2]
    assert manifest["output"]["shape"] == [1, 16]
    assert manifest["acquisition"] == tiny_run.acquisition.to_dict()
    assert manifest["companding"]["thin"] == 4
    assert manifest["metrics"]["overall"]["n"] == 4
    assert set(manifest["metrics"]["families"]) == {"flatvel_a", "flatfault_b"}
    assert manifest["metrics"]["latent_sqnr_db"] > 20
    assert abs(manifest["metrics"]["overall"]["cost_percent"]) <= 3
    assert {"keras", "ai-edge-litert", "numpy"} <= set(manifest["versions"])
    assert manifest["prefixes"] == []
    assert [rate["latent_bytes"] for rate in manifest["metrics"]["rates"]] == [16, 8]
    assert manifest["metrics"]["rates"][0]["mae"] == manifest["metrics"]["overall"]["mae_int8"]
    json.dumps(converted.to_dict())


def test_a_run_with_ordered_latents_says_on_both_sides_which_prefixes_decode(tiny_run, tmp_path):
    run = tiny_run.copy_to(tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "budget": {"ordered": True}}))
    out = convert_run(run, tmp_path / "out").out
    bundle = load_bundle(out / "bundle")
    assert bundle.coding.prefixes == prefix_rates(16)
    assert load_decoder(out / "decoder").coding == bundle.coding
    rates = bundle.manifest["metrics"]["rates"]
    assert [rate["latent_bytes"] for rate in rates] == [rate.payload_bytes for rate in bundle.coding.rates]
    assert len({rate["mae"] for rate in rates}) > 1, "measured, each on its own"


@pytest.mark.skipif(not tflm.available(), reason="needs the extra tflm (the TFLite-Micro interpreter)")
def test_the_golden_vectors_hold_three_arithmetics_of_held_out_parts(converted):
    inputs, latents = read_vectors(load_bundle(converted.out / "bundle"))
    assert len(inputs) == GOLDEN_VECTORS
    assert latents.shape == (3, GOLDEN_VECTORS, latents.shape[2])
    assert len(np.unique(latents[0], axis=0)) == GOLDEN_VECTORS, "each part has a latent of its own"


def test_the_bundle_holds_the_encoder_for_stock_micropython(converted):
    bundle = load_bundle(converted.out / "bundle")
    inputs, _ = read_vectors(bundle)
    compiled = (bundle.folder / "encoder.epicnn").read_bytes()
    assert compiled == compile_encoder(bundle.encoder_path.read_bytes(), inputs[:1])
    assert bundle.manifest["metrics"]["micropython"] == converted.micropython
    assert f"{read_memory(compiled).total:,} B of buffers" in converted.micropython


def test_the_arena_and_the_second_runtime_are_in_the_manifest(converted):
    manifest = json.loads((converted.out / "bundle" / "manifest.json").read_text())
    assert manifest["arena_bytes"] == converted.arena_bytes > 1000
    assert manifest["metrics"]["tflm_against_litert"]["max_difference_lsb"] <= 2
    assert manifest["metrics"]["tflm_against_litert"]["latents"] == 8


def test_without_tflm_the_arena_is_null_and_says_why(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(tflm, "available", lambda: False)
    conversion = convert_run(tiny_run.folder, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "bundle" / "manifest.json").read_text())
    assert manifest["arena_bytes"] is None is conversion.arena_bytes
    assert "extra `tflm`" in manifest["metrics"]["arena"]
    assert manifest["metrics"]["tflm_against_litert"] is None
    assert [v.fits for v in conversion.verdicts if v.question == "tensor arena"] == [None]


@pytest.mark.skipif(not (shutil.which("gcc") and shutil.which("g++")), reason="needs gcc and g++")
@pytest.mark.parametrize(("compiler", "standard"), [("gcc", "c11"), ("g++", "c++11")])
def test_firmware_in_c_or_cpp_links_the_model_byte_for_byte(converted, tmp_path, compiler, standard):
    bundle = converted.out / "bundle"
    main = tmp_path / "main.c"
    main.write_text(
        '#include <stdint.h>\n#include <stdio.h>\n#include <string.h>\n#include "encoder.h"\n'
        f'int main(void) {{ if ((uintptr_t)epic_encoder % 16 || strcmp(EPIC_MODEL_HASH, "{converted.model_hash}"))'
        " return 1;\n return fwrite(epic_encoder, 1, epic_encoder_bytes, stdout) != epic_encoder_bytes; }\n"
    )
    build = [
        compiler,
        f"-std={standard}",
        "-Wall",
        "-Werror",
        f"-I{bundle}",
        str(main),
        str(bundle / "encoder.c"),
    ]
    subprocess.run([*build, "-o", str(tmp_path / "main")], check=True, capture_output=True)
    out = subprocess.run([str(tmp_path / "main")], check=True, capture_output=True).stdout
    assert out == (bundle / "encoder.tflite").read_bytes()


def test_converting_again_replaces_both_folders_and_nothing_else(converted, tiny_run):
    card = converted.out / "CARD.md"
    card.write_text("a card")
    before = (converted.out / "bundle" / "encoder.tflite").read_bytes()
    again = convert_run(tiny_run.folder, converted.out)
    assert (converted.out / "bundle" / "encoder.tflite").read_bytes() == before
    assert leftovers(converted.out / "bundle") == [
        "encoder.epicnn",
        "encoder.tflite",
        "manifest.json",
        "vectors.npz",
    ]
    assert card.read_text() == "a card"
    assert again.model_hash == converted.model_hash
    assert leftovers(converted.out.parent) == ["tiny"]


def test_the_gate_refuses_an_int8_encoder_that_costs_too_much(tiny_run, tmp_path):
    """With the float network's own maps as the truth, every error left is int8's."""
    from convert.run_folder import read_run
    from convert.verify import float_latents
    from models.data.gathers import device_parts, load_decimated
    from models.inversion.decoder import LatentFormat, save_decoder

    run = read_run(tiny_run.folder)
    family = tmp_path / "held" / "FlatVel_A"
    family.mkdir(parents=True)
    gathers = np.load(tiny_run.data / "FlatVel_A" / "data1.npy")[:6]
    np.save(family / "data1.npy", gathers)
    np.save(family / "model1.npy", np.full((6, *run.acquisition.map_shape), 2000, np.float32))
    thinned = load_decimated([tmp_path / "held"], run.acquisition, run.config.thin)
    parts = device_parts(thinned.gathers, run.acquisition, run.companding)
    latents = float_latents(run.encoder, parts.reshape(-1, *parts.shape[2:])).reshape(6, 2, -1)
    save_decoder(tmp_path / "decoder", run.decoder_file, LatentFormat("00" * 8, 1.0, 0), run.acquisition)
    maps, _ = load_decoder(tmp_path / "decoder").decode_float(latents, np.ones((6, 2), bool))
    np.save(family / "model1.npy", maps + 0.01)

    with pytest.raises(
        ConversionError, match=r"int8 raises the error of the decoded map by [\d.]+ % .* allowed are 3 %"
    ):
        convert_run(tiny_run.folder, tmp_path / "out", held_out=(tmp_path / "held",))
    assert not (tmp_path / "out").exists()
    assert leftovers(tmp_path) == ["decoder", "held"]


@pytest.mark.parametrize("missing", ["encoder.keras", "decoder.keras"])
def test_a_run_without_a_network_is_refused(tiny_run, tmp_path, missing):
    run = tiny_run.copy_to(tmp_path / "run")
    (run / missing).unlink()
    with pytest.raises(ConversionError, match=f"{missing}: not found; the run has not finished"):
        convert_run(run, tmp_path / "out")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConversionError, match=r"config\.json: not found"):
        convert_run(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("content", ["{", '{"kind": "epic"}', "[1]"])
def test_a_damaged_configuration_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConversionError, match=r"config\.json: not the configuration of a run"):
        convert_run(tmp_path, tmp_path / "out")


def test_held_out_gathers_that_are_not_numbers_are_refused(tiny_run, tmp_path):
    family = tmp_path / "held" / "FlatVel_A"
    family.mkdir(parents=True)
    np.save(family / "data1.npy", np.full((2, *tiny_run.acquisition.gather_shape), np.nan, np.float32))
    np.save(family / "model1.npy", np.full((2, *tiny_run.acquisition.map_shape), 2000, np.float32))
    with pytest.raises(ConversionError, match="data1.npy: sample 0: expected finite samples, got NaN"):
        convert_run(tiny_run.folder, tmp_path / "out", held_out=(tmp_path / "held",))


def test_a_run_of_the_baseline_is_refused(tiny_run, tmp_path):
    run = tiny_run.copy_to(tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "kind": "inversionnet"}))
    with pytest.raises(
        ConversionError, match="expected a run of `epic train epic`, got one of 'inversionnet'"
    ):
        convert_run(run, tmp_path / "out")


def test_a_damaged_network_file_is_refused(tiny_run, tmp_path):
    run = tiny_run.copy_to(tmp_path / "run")
    (run / "encoder.keras").write_bytes((run / "encoder.keras").read_bytes()[:500])
    with pytest.raises(ConversionError, match=r"encoder\.keras: expected a Keras network"):
        convert_run(run, tmp_path / "out")


def test_weights_that_are_not_numbers_are_refused(tiny_run, tmp_path):
    run = tiny_run.copy_to(tmp_path / "run")

    def spoil(network):
        network.get_layer("conv0").set_weights([w * np.nan for w in network.get_layer("conv0").get_weights()])

    edit_network(run / "encoder.keras", spoil)
    with pytest.raises(ConversionError, match="holds NaN or infinity; training has diverged"):
        convert_run(run, tmp_path / "out")


def test_a_collapsed_encoder_is_refused_however_well_it_quantises(tiny_run, tmp_path):
    run = tiny_run.copy_to(tmp_path / "run")

    def collapse(network):
        kernel, bias = network.get_layer("latent").get_weights()
        network.get_layer("latent").set_weights([kernel * 1e-5, bias + 1.0])

    edit_network(run / "encoder.keras", collapse)
    with pytest.raises(ConversionError, match="hardly depends on its input .* it has collapsed"):
        convert_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not tflm.available(), reason="needs the extra tflm (the TFLite-Micro interpreter)")
@pytest.mark.parametrize(("steps", "values"), [(3, 1), (2, 1000)])
def test_an_operator_that_differs_in_the_second_runtime_is_no_rounding(
    tiny_run, tmp_path, monkeypatch, steps, values
):
    run = tflm.run

    def otherwise(model, codes, arena_bytes):
        latents = run(model, codes, arena_bytes).astype(np.int16)
        some = latents.reshape(-1)[:values]
        some += np.where(some > 0, -steps, steps).astype(np.int16)
        return latents.astype(np.int8)

    monkeypatch.setattr(tflm, "run", otherwise)
    with pytest.raises(ConversionError, match="differ by up to [23] int8 steps, .* an operator differs"):
        convert_run(tiny_run.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_whose_data_are_gone_is_refused(tiny_run, tmp_path):
    run = tiny_run.copy_to(tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "data": [str(tmp_path / "gone")]}))
    with pytest.raises(ConversionError, match="gone: no such folder"):
        convert_run(run, tmp_path / "out")


@pytest.mark.parametrize("within", [".", "..", "FlatVel_A"])
def test_training_data_are_not_held_out(tiny_run, tmp_path, within):
    with pytest.raises(ConversionError, match="was trained on; give held-out data"):
        convert_run(tiny_run.folder, tmp_path / "out", held_out=(tiny_run.data / within,))
    assert not (tmp_path / "out").exists()


def test_a_folder_of_someone_else_is_not_replaced(tiny_run, tmp_path):
    (tmp_path / "out" / "bundle").mkdir(parents=True)
    (tmp_path / "out" / "bundle" / "thesis.tex").write_text("do not lose me")
    with pytest.raises(ConversionError, match="was not written by `epic convert`"):
        convert_run(tiny_run.folder, tmp_path / "out")
    assert leftovers(tmp_path / "out" / "bundle") == ["thesis.tex"]
