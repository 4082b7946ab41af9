"""The float network read back from a .tflite encodes as the int8 one does, up to rounding."""

import numpy as np
import pytest
from tiny import ENCODER

from firmware_py.inference.bundle import load_bundle
from firmware_py.inference.companding import compand
from firmware_py.inference.encoder import Encoder
from models.networks.float_encoder import FloatEncoderError, float_encoder
from testbed.run import find_model
from testbed.samples import load_samples


def test_latents_are_a_step_or_so_from_those_of_the_released_encoder():
    """Strided, depthwise, residual and dense layers all take part; normalisation is folded in."""
    bundle = load_bundle(find_model(None).bundle)
    parts = [sample.gather[:, :, :14] for sample in load_samples()]
    network = float_encoder(bundle.encoder_path.read_bytes())
    floats = np.asarray(network(np.stack([compand(part, bundle.companding, 14) for part in parts])))
    codes = np.stack([Encoder(bundle).encode_recording(part) for part in parts]).astype(float)
    off = floats / bundle.output.scale + bundle.output.zero_point - codes
    assert np.sqrt(np.mean(off**2)) < 1.5
    assert abs(off.mean()) < 0.3


def test_an_operator_without_a_float_form_is_named():
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(ENCODER, 0)
    for code in model.operatorCodes:
        if max(code.builtinCode, code.deprecatedBuiltinCode) == schema.BuiltinOperator.CONV_2D:
            code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.COS
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    with pytest.raises(FloatEncoderError, match="operator 0 is COS, whose float form is not known"):
        float_encoder(bytes(builder.Output()))
