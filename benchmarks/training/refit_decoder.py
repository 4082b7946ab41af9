"""Start a training from the encoder of one released model and the decoder of another, better trained one.

    python benchmarks/training/refit_decoder.py --encoder models/zoo/epic-micro-64 --decoder models/zoo/epic-small-128 \
        --data DATA --out START                # then: epic train epic --encoder micro --quantised --start-from START

The decoder's first layer is linear. It is refitted by least squares, so that the encoder's latents give the tokens that
the decoder had from its own encoder. The rest of the decoder stays. Prints the error of the first samples' maps.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import keras
import numpy as np

from firmware_py.inference.bundle import load_bundle
from firmware_py.inference.encoder import Encoder
from models.data.gathers import DecimatedSet, device_parts, load_decimated
from models.networks.fusion import DECODERS, DecoderConfig, build_decoder
from models.training.training import load_network
from physics.acquisition import Acquisition

# Samples for the fit, and those of them whose maps are predicted.
SAMPLES, SHOWN = 1000, 200


def latents_of(model: Path, data: DecimatedSet) -> np.ndarray:
    """Return a released model's latents of all parts, as real values ``(n, n_devices, latent)``."""
    bundle = load_bundle(model / "bundle")
    parts = device_parts(data.gathers.astype(np.float32), data.acquisition, bundle.companding)
    latents = Encoder(bundle).encode_parts(parts.reshape(-1, *parts.shape[2:]))
    return latents.reshape(*parts.shape[:2], -1)


def refitted(decoder: keras.Model, own: np.ndarray, others: np.ndarray, a: Acquisition) -> keras.Model:
    """Return ``decoder`` for latents ``others`` in place of its ``own``; both are ``(n, n_devices, latent)``."""
    first = decoder.get_layer("tokens")
    tokens = own.reshape(-1, own.shape[-1]) @ np.array(first.kernel) + np.array(first.bias)
    rows = others.reshape(-1, others.shape[-1])
    fitted, *_ = np.linalg.lstsq(np.c_[rows, np.ones(len(rows))], tokens, rcond=None)
    config = DecoderConfig(a.n_devices, rows.shape[-1], a.n_depth, a.n_width, **DECODERS["small"])
    result = build_decoder(config)
    for new, old in zip(result.weights, decoder.weights, strict=True):
        if new.shape == old.shape:
            new.assign(old)
    result.get_layer("tokens").kernel.assign(fitted[:-1])
    result.get_layer("tokens").bias.assign(fitted[-1])
    return result


def error(decoder: keras.Model, latents: np.ndarray, data: DecimatedSet) -> float:
    """Return the MAE of the first maps, normalised."""
    some = latents[:SHOWN]
    positions = np.repeat(data.acquisition.device_positions()[None], len(some), axis=0)
    inputs = {"latents": some, "positions": positions, "mask": np.ones(some.shape[:2], np.float32)}
    predicted = decoder.predict(inputs, batch_size=20, verbose=0)["velocity"][..., 0]
    return float(np.abs(predicted - data.maps[: len(some)]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("encoder", "decoder", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--data", type=Path, action="append", required=True)
    given = parser.parse_args()
    bundle = load_bundle(given.encoder / "bundle")
    survey = Acquisition.from_dict(bundle.manifest["acquisition"])
    whole = load_decimated(given.data, survey, bundle.companding.thin)
    some = np.sort(np.random.default_rng(0).permutation(len(whole))[:SAMPLES])
    data = DecimatedSet(whole.gathers[some], whole.maps[some], whole.families[some], whole.acquisition)
    decoder = load_network(given.decoder / "decoder" / "decoder.keras")
    own, others = latents_of(given.decoder, data), latents_of(given.encoder, data)
    result = refitted(decoder, own, others, data.acquisition)
    shutil.copytree(given.encoder / "bundle", given.out / "bundle")
    (given.out / "decoder").mkdir()
    result.save(given.out / "decoder" / "decoder.keras")
    print(
        f"MAE {error(decoder, own, data):.4f} with its own encoder, {error(result, others, data):.4f} refitted"
    )


if __name__ == "__main__":
    main()
