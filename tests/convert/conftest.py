"""A tiny finished run: real networks of small size, untrained, and data to convert with."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest

from physics.acquisition import Acquisition

THIN = 4
LATENT = 16


@dataclass
class TinyRun:
    """Where the run and its data lie; ``edit`` makes a copy that a test may break."""

    folder: Path
    data: Path
    acquisition: Acquisition

    def copy_to(self, folder: Path) -> Path:
        return Path(shutil.copytree(self.folder, folder))


def tiny_acquisition() -> Acquisition:
    return Acquisition(
        n_depth=10,
        n_width=20,
        dx_m=10.0,
        dt_s=1e-3,
        n_time=80,
        peak_frequency_hz=15.0,
        source_cells=(0, 19),
        receiver_cells=tuple(range(20)),
        source_row=1,
        receiver_row=1,
        device_receivers=(tuple(range(10)), tuple(range(10, 20))),
    )


def build_tiny_encoder():
    from models.networks.encoder import EncoderConfig, Stage, build_encoder

    stages = (Stage(8, (3, 3), (2, 1), residuals=1), Stage(8, (3, 3), (2, 2)))
    return build_encoder(EncoderConfig(20, 10, 2, LATENT, stages, bottleneck=24))


@pytest.fixture(scope="session")
def tiny_encoder():
    """A function that builds the encoder afresh, the same weights each time."""
    import keras

    def build():
        keras.utils.set_random_seed(5)
        return build_tiny_encoder()

    return build


def write_family(folder: Path, gather_name: str, map_name: str, n: int, seed: int) -> None:
    a = tiny_acquisition()
    rng = np.random.default_rng(seed)
    fade = 10 ** (-2 * np.linspace(0, 1, a.n_time))[:, None]
    folder.mkdir(parents=True)
    gathers = 20 * rng.normal(size=(n, *a.gather_shape)) * fade
    np.save(folder / gather_name, gathers.astype(np.float32))
    np.save(folder / map_name, rng.uniform(1500, 4500, size=(n, *a.map_shape)).astype(np.float32))


@pytest.fixture(scope="session")
def quantise_once():
    """Conversions of the same network and inputs share one run of the converter, in the process of the tests.

    test_quantise.py shows that it gives the same bytes each time, and in a process of its own.
    """
    from quantising import quantise_here

    import convert.flow
    import convert.quantise

    models: dict[tuple, bytes] = {}

    def quantise_if_new(encoder, representative):
        weights = b"".join(np.ascontiguousarray(one).tobytes() for one in encoder.get_weights())
        key = (encoder.to_json(), weights, representative.tobytes())
        if key not in models:
            convert.quantise._check(encoder, representative)
            models[key] = quantise_here(encoder, representative)
        return models[key]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(convert.flow, "quantise", quantise_if_new)
        yield


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, quantise_once) -> TinyRun:
    import keras

    from models.data.companding import choose_companding
    from models.networks.fusion import DecoderConfig, build_decoder
    from models.training.run_config import RunConfig, write_json

    root = tmp_path_factory.mktemp("tiny")
    data, folder = root / "data", root / "run"
    write_family(data / "FlatVel_A", "data1.npy", "model1.npy", 100, seed=1)
    write_family(data / "FlatFault_B", "seis6_1_0.npy", "vel6_1_0.npy", 100, seed=2)
    a = tiny_acquisition()
    keras.utils.set_random_seed(7)
    encoder = build_tiny_encoder()
    decoder_config = DecoderConfig(
        n_devices=2,
        latent=LATENT,
        n_depth=10,
        n_width=20,
        width=16,
        heads=2,
        tokens_per_device=2,
        self_layers=1,
        cross_layers=1,
        refine_layers=1,
        pixel_channels=2,
    )
    decoder = build_decoder(decoder_config)
    folder.mkdir()
    encoder.save(folder / "encoder.keras")
    decoder.save(folder / "decoder.keras")
    gathers = np.load(data / "FlatVel_A" / "data1.npy")
    companding, _ = choose_companding(gathers, THIN)
    config = RunConfig(
        kind="epic",
        data=[str(data)],
        acquisition=a.to_dict(),
        budget={},
        thin=THIN,
        companding=companding.to_dict(),
        encoder=None,
        decoder=asdict(decoder_config),
        log_range=None,
    )
    write_json(folder / "config.json", asdict(config))
    return TinyRun(folder, data, a)
