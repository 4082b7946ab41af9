"""Muon: every direction of a kernel moves alike; what is no matrix is left to AdamW; a run goes on with it."""

import keras
import numpy as np
import pytest
from eager import eagerly
from small_networks import DECODER, ENCODER
from small_survey import SURVEY, write_data

from models.errors import TrainingError
from models.networks.encoder import PRESETS
from models.networks.fusion import DECODERS
from models.training.budget import Budget
from models.training.muon import Muon
from models.training.request import TrainRequest
from models.training.run import start_run
from models.training.training import load_checkpoint

pytestmark = pytest.mark.slow


def _network() -> keras.Model:
    keras.utils.set_random_seed(3)
    image = keras.Input((8, 8, 4))
    x = keras.layers.Conv2D(12, 3, padding="same", name="conv")(image)
    x = keras.layers.DepthwiseConv2D(3, padding="same", name="conv_depth")(x)
    x = keras.layers.Reshape((64, 12))(x)
    x = keras.layers.MultiHeadAttention(3, 4, name="attention")(x, x)
    x = keras.layers.Dense(14, name="dense")(x)
    x = keras.layers.Dense(14, name="out")(x)
    return keras.Model(image, x)


def _moves(optimiser: keras.optimizers.Optimizer) -> dict[str, np.ndarray]:
    """How each variable moves in one step by the same gradients, which are strong in few directions."""
    network = _network()
    rng = np.random.default_rng(0)
    variables = network.trainable_variables
    before = [np.array(variable) for variable in variables]
    scales = [np.geomspace(1.0, 30.0, variable.shape[-1]) for variable in variables]
    gradients = [
        keras.ops.convert_to_tensor(rng.normal(size=variable.shape) * scale, "float32")
        for variable, scale in zip(variables, scales, strict=True)
    ]
    optimiser.apply(gradients, variables)
    return {
        variable.path: np.array(variable) - value for variable, value in zip(variables, before, strict=True)
    }


@pytest.fixture(scope="module")
def muon() -> dict[str, np.ndarray]:
    return _moves(Muon(0.01, weight_decay=None, adam_weight_decay=None))


@pytest.mark.parametrize(
    ("path", "columns"),
    [
        ("conv/kernel", 12),
        ("attention/query/kernel", 12),
        ("attention/attention_output/kernel", 12),
        ("dense/kernel", 14),
    ],
)
def test_every_direction_of_a_kernel_moves_alike(muon, path, columns):
    matrix = muon[path].reshape(-1, columns)
    singular = np.linalg.svd(matrix, compute_uv=False)
    # Newton and Schulz' iteration stops near 1: between 0.7 and 1.2 (Jordan et al. 2024).
    assert singular.max() < 2.0 * singular.min()
    assert np.sqrt(np.mean(singular**2)) == pytest.approx(0.01 * 0.2 * np.sqrt(max(matrix.shape)), rel=0.2)
    # So it is no other optimiser's step: AdamW's is far from it for the same gradient.
    plain = np.linalg.svd(
        _moves(keras.optimizers.AdamW(0.01, weight_decay=0.0))[path].reshape(-1, columns), compute_uv=False
    )
    assert plain.max() > 2.0 * plain.min()


def test_what_is_no_mixing_matrix_is_left_to_adamw(muon):
    adamw = _moves(keras.optimizers.AdamW(0.01, weight_decay=0.0))
    left = ("conv_depth/kernel", "out/kernel", "conv/bias", "dense/bias")
    left += tuple(f"attention/{name}/bias" for name in ("query", "key", "value"))
    assert set(left) <= set(muon)
    for path in left:
        np.testing.assert_allclose(muon[path], adamw[path], rtol=1e-3, atol=1e-6)


@eagerly()
def test_a_run_resumes_with_it_and_refuses_another(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "micro", ENCODER)
    monkeypatch.setitem(DECODERS, "small", DECODER)
    data = write_data(tmp_path / "data")
    begin = {"encoder": "micro", "acquisition": SURVEY}
    start_run(
        TrainRequest(
            "epic", [data], tmp_path / "run", Budget(batch=16, epochs=0.3, optimiser="muon"), **begin
        )
    )
    first = load_checkpoint(tmp_path / "run").optimizer
    assert isinstance(first, Muon)
    start_run(
        TrainRequest(
            "epic", [data], tmp_path / "run", Budget(batch=16, epochs=0.6, optimiser="muon"), **begin
        )
    )
    assert int(load_checkpoint(tmp_path / "run").optimizer.iterations) > int(first.iterations)
    with pytest.raises(TrainingError, match="muon optimises; go on with --optimiser muon"):
        start_run(TrainRequest("epic", [data], tmp_path / "run", Budget(batch=16, epochs=0.9), **begin))
    with pytest.raises(TrainingError, match=r"adamw, muon; got 'sgd'"):
        Budget(epochs=1, optimiser="sgd")
