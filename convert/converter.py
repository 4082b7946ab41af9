"""The process in which the TFLite converter runs: ``python -m convert.converter FOLDER``.

The folder holds the encoder and the representative set. The process adds the model, or one line that says why the
converter refused the encoder.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from boards.lean_imports import skip_unused_packages

ENCODER, REPRESENTATIVE = "encoder.keras", "representative.npy"
MODEL, REFUSAL = "encoder.tflite", "refusal.txt"


def main(folder: Path) -> None:
    """Convert the encoder in ``folder``, whose batch axis is fixed at one, to full int8."""
    skip_unused_packages()
    import tensorflow as tf

    from models.training.training import load_network

    representative = np.load(folder / REPRESENTATIVE)

    def samples() -> Iterator[list[np.ndarray]]:
        for row in representative:
            yield [row[None]]

    converter = tf.lite.TFLiteConverter.from_keras_model(load_network(folder / ENCODER))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = samples
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.int8
    converter.inference_output_type = tf.int8
    try:
        model = converter.convert()
    except Exception as error:  # The converter raises many exception types, some from C++.
        lines = str(error).strip().splitlines()
        (folder / REFUSAL).write_text(lines[0] if lines else type(error).__name__)
        return
    (folder / MODEL).write_bytes(model)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
