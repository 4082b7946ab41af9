"""Run the int8 encoder in LiteRT, with the arithmetic of a Linux device or of a microcontroller."""

from __future__ import annotations

import numpy as np

from boards.quiet import hold_output


def run(model: bytes, inputs: np.ndarray, xnnpack: bool = True) -> np.ndarray:
    """Run LiteRT on one thread: ``(n, time, width, sources)`` int8 -> ``(n, latent)`` int8.

    With ``xnnpack`` (LiteRT's default), sums are rescaled in floating point, as on a Linux device. Without it, LiteRT's
    own kernels use the integer arithmetic of TFLite-Micro.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType.AUTO if xnnpack else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    with hold_output():
        interpreter = Interpreter(model_content=model, num_threads=1, experimental_op_resolver_type=resolver)
        interpreter.allocate_tensors()
    input_index = interpreter.get_input_details()[0]["index"]
    output_index = interpreter.get_output_details()[0]["index"]
    outputs = []
    for row in inputs:
        interpreter.set_tensor(input_index, row[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(output_index)[0].copy())
    return np.stack(outputs)
