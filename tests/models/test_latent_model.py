"""The chain from a map to latents is the one that devices go through, and tells right maps from wrong ones."""

import keras
import numpy as np
import pytest
from eager import eagerly

from firmware_py.inference.companding import Companding, compand
from models.errors import TrainingError
from models.evaluation.consistency import measure_consistency
from models.inversion.latent_model import LatentModel
from models.networks.encoder import EncoderConfig, Stage, build_encoder
from models.training.budget import Budget
from models.training.request import TrainRequest
from models.training.run import start_run
from physics.acquisition import Acquisition
from physics.dataset import DatasetRequest, generate_dataset
from physics.families import generate_map
from physics.modelling import model_gathers

pytestmark = pytest.mark.slow

# Three devices of unlike width, so that padding takes part; short, so that modelling takes a moment.
SURVEY = Acquisition.from_dict(
    {
        **Acquisition.openfwi().to_dict(),
        "n_time": 200,
        "device_receivers": [list(range(0, 30)), list(range(30, 60)), list(range(60, 70))],
    }
)
COMPANDING = Companding(20.0, 7.6, 10)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    encoder = build_encoder(EncoderConfig(20, 30, 5, 16, (Stage(8, (3, 3), (2, 2)),), bottleneck=4))
    return LatentModel(encoder, COMPANDING, SURVEY, np.full(16, 0.1)), encoder


@pytest.fixture(scope="module")
def maps():
    return [generate_map("curvevel_a", 5, index, SURVEY)[0] for index in range(2)]


def test_latents_of_a_map_are_those_of_its_gather(model, maps):
    latent_model, encoder = model
    gather = model_gathers(maps[0][None, None], SURVEY)[0]
    parts = [compand(gather[:, :, list(group)], COMPANDING, 30) for group in SURVEY.device_receivers]
    np.testing.assert_allclose(latent_model.latents(maps[0]), encoder(np.stack(parts)), atol=1e-4)


def test_distance_is_nought_for_the_map_itself_and_leaves_out_who_was_not_heard(model, maps):
    latent_model, _ = model
    right, wrong = (latent_model.latents(map_) for map_ in maps)
    everyone = np.ones(3, np.float32)
    assert float(latent_model.distance(right, right, everyone)) < 1e-5
    assert float(latent_model.distance(right, wrong, everyone)) > 0.1
    spoilt = right.copy()
    spoilt[1] += 100.0
    assert float(latent_model.distance(spoilt, right, np.array([1.0, 0.0, 1.0]))) < 1e-5
    one = right.copy()
    one[0] += 0.1
    assert float(latent_model.distance(one, right, np.array([1.0, 0.0, 0.0]))) == pytest.approx(1.0, rel=1e-4)


@eagerly()
def test_a_run_is_measured_and_the_truth_fits_best(tmp_path):
    generate_dataset(DatasetRequest(("flatvel_a",), 50, 1, SURVEY), tmp_path / "data")
    generate_dataset(DatasetRequest(("flatvel_a",), 3, 2, SURVEY), tmp_path / "held-out")
    start_run(
        TrainRequest(
            "epic", [tmp_path / "data"], tmp_path / "run", Budget(batch=7, epochs=0.3), acquisition=SURVEY
        )
    )
    found = measure_consistency(tmp_path / "run", [tmp_path / "held-out"], 3)
    assert found["truth"] < 0.1 < found["predicted"]
    assert found["samples"] == 3 and -1 <= found["correlation"] <= 1
    with pytest.raises(TrainingError, match="was trained on; give held-out data"):
        measure_consistency(tmp_path / "run", [tmp_path / "data"], 3)
    with pytest.raises(TrainingError, match="expected 3 to 3 samples"):
        measure_consistency(tmp_path / "run", [tmp_path / "held-out"], 4)
