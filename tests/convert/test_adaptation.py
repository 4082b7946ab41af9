"""An adapted model: another decoder for the same encoder, or none at all."""

import json
import shutil

import numpy as np
import pytest
from eager import eagerly

pytest.importorskip("keras", reason="conversion needs the train extra")

import keras

from convert.adaptation import adapt
from convert.errors import ConversionError
from convert.flow import convert_run
from firmware_py.inference.bundle import load_bundle
from models.inversion.decoder import file_sha256, load_decoder
from models.training.budget import Budget

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def released(tiny_run, tmp_path_factory):
    return convert_run(tiny_run.folder, tmp_path_factory.mktemp("zoo") / "tiny").out


def test_an_adapted_model_has_the_encoder_of_before_and_draws_better_maps(released, tiny_run, tmp_path):
    found = adapt(released, [tiny_run.data], tmp_path / "adapted", Budget(epochs=4, learning_rate=3e-3))
    assert found.after["all"]["mae"] < found.before["all"]["mae"]
    before, after = (load_bundle(folder / "bundle") for folder in (released, tmp_path / "adapted"))
    decoder = load_decoder(tmp_path / "adapted" / "decoder")
    assert before.model_hash == after.model_hash
    assert after.encoder_path.read_bytes() == before.encoder_path.read_bytes()
    assert after.manifest["decoder_sha256"] == decoder.sha256 != before.manifest["decoder_sha256"]
    assert decoder.coding.rates == load_decoder(released / "decoder").coding.rates
    assert decoder.ood_statistics is not None
    assert [path.name for path in sorted((tmp_path / "adapted").iterdir())] == ["bundle", "decoder"]


@eagerly()
def test_a_decoder_that_learnt_nothing_is_not_written(released, tiny_run, tmp_path, monkeypatch):
    scores = iter([{"all": {"mae": 0.2}}, {"all": {"mae": 0.21}}])
    monkeypatch.setattr("models.training.adaptation.score", lambda *arguments: next(scores))
    with pytest.raises(ConversionError, match=r"worse than the former one's, MAE 0.2100 against 0.2000"):
        adapt(released, [tiny_run.data], tmp_path / "adapted", Budget(epochs=0.1))
    assert not (tmp_path / "adapted" / "decoder").exists()
    assert not (tmp_path / "adapted" / "adaptation").exists(), "the next call begins anew"


def test_an_interrupted_adaptation_of_something_else_is_not_gone_on_with(
    released, tiny_run, tmp_path, monkeypatch
):
    def interrupted(learner, batches, split, budget, run, on_progress):
        (run / "checkpoint").mkdir(exist_ok=True)
        (run / "checkpoint" / "progress.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr("convert.adaptation.adapt_decoder", interrupted)
    begun = {
        "model": released,
        "data": [tiny_run.data],
        "out": tmp_path / "adapted",
        "budget": Budget(epochs=1),
    }
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            adapt(**begun)
    with pytest.raises(KeyboardInterrupt):
        adapt(**begun | {"budget": Budget(epochs=2)})
    other = shutil.copytree(released, tmp_path / "other")
    about = other / "decoder" / "decoder.json"
    network = keras.models.load_model(other / "decoder" / "decoder.keras", compile=False)
    network.set_weights([weight + 0.1 for weight in network.get_weights()])
    network.save(other / "decoder" / "decoder.keras")
    sha256 = file_sha256(other / "decoder" / "decoder.keras")
    about.write_text(json.dumps(json.loads(about.read_text()) | {"sha256": sha256}))
    for change, differing in (
        ({"model": other}, "parent_sha256"),
        ({"data": [tiny_run.data, tiny_run.data]}, "data"),
        ({"budget": Budget(epochs=1, batch=16, seed=1, learning_rate=1e-4)}, "seed, batch, learning_rate"),
    ):
        with pytest.raises(
            ConversionError, match=f"an interrupted adaptation with other {differing}; give the same"
        ):
            adapt(**begun | change)
    (tmp_path / "adapted" / "adaptation" / "request.json").unlink()
    with pytest.raises(ConversionError, match="or remove the folder"):
        adapt(**begun)


def test_too_few_samples_to_validate_on_are_refused(released, tiny_run, tmp_path):
    few = tmp_path / "data" / "FlatVel_A"
    few.mkdir(parents=True)
    for name in ("data1.npy", "model1.npy"):
        np.save(few / name, np.load(tiny_run.data / "FlatVel_A" / name)[:20])
    with pytest.raises(ConversionError, match="expected at least 50 samples"):
        adapt(released, [tmp_path / "data"], tmp_path / "adapted", Budget(epochs=1))
    shutil.rmtree(tmp_path / "data")
