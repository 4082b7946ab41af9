"""A small encoder and survey, so that tests of devices and the centre take milliseconds."""

from pathlib import Path

from firmware_py.inference.bundle import Bundle, create_bundle
from firmware_py.inference.companding import Companding

ENCODER = (Path(__file__).parent / "tiny-encoder.tflite").read_bytes()
# Two sources, 100 samples, 6 receivers on two devices; thinned by 10 the encoder takes (10, 3, 2).
SHAPE = (2, 100, 6)


def quantisation() -> dict:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=ENCODER)
    details = {"input": interpreter.get_input_details()[0], "output": interpreter.get_output_details()[0]}
    return {
        name: {
            "shape": [int(n) for n in tensor["shape"]],
            "scale": float(tensor["quantization"][0]),
            "zero_point": int(tensor["quantization"][1]),
        }
        for name, tensor in details.items()
    }


def bundle_fields() -> dict:
    return {
        "name": "tiny",
        **quantisation(),
        "companding": Companding(20.0, 5.0, 10).to_dict(),
        "acquisition": {
            "source_cells": [0, 5],
            "receiver_cells": list(range(6)),
            "n_time": 100,
            "device_receivers": [[0, 1, 2], [3, 4, 5]],
        },
        "decoder_sha256": "0" * 64,
    }


def save_release(folder: Path, network, acquisition, ood_statistics=None) -> Bundle:
    """Write the tiny encoder and the decoder ``network`` into ``folder``: ``bundle/`` and the ``decoder/`` it names."""
    from models.inversion.decoder import LatentFormat, save_decoder

    network.save(folder / "decoder.keras")
    fields = {**bundle_fields(), "acquisition": acquisition.to_dict()}
    output = fields["output"]
    bundle = create_bundle(folder / "bundle", ENCODER, fields)
    sha256 = save_decoder(
        folder / "decoder",
        folder / "decoder.keras",
        LatentFormat(bundle.model_hash.hex(), output["scale"], output["zero_point"]),
        acquisition,
        ood_statistics,
    )
    return create_bundle(folder / "bundle", ENCODER, {**fields, "decoder_sha256": sha256})


def waves_bundle(folder: Path) -> Bundle:
    """Write a bundle of the tiny encoder for the survey of ``small_waves`` into ``folder``."""
    from small_waves import WAVES

    return create_bundle(folder / "bundle", ENCODER, {**bundle_fields(), "acquisition": WAVES.to_dict()})


def bundle_centre(folder: Path, bundle: Bundle) -> Path:
    """Write the ``central.toml`` of a centre in ``folder`` with one model; its decoder is not there."""
    path = folder / "central.toml"
    path.write_text(
        '[central]\nlisten = "tcp://127.0.0.1:*"\ninsecure = true\ndata_dir = "data"\n'
        f'[[model]]\nbundle = "{bundle.folder}"\ndecoder = "decoder"\n'
    )
    return path
