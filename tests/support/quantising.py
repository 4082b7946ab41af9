"""Conversion to int8 in the process of the test.

``convert.quantise`` starts a process, because the converter may crash; that one imports TensorFlow again, for 3 to 5 s.
tests/convert/test_quantise.py has the process.
"""

import tempfile
from pathlib import Path

import numpy as np

from boards.quiet import hold_output
from convert import converter
from convert.quantise import rebuild_batch_one


def quantise_here(encoder, representative: np.ndarray) -> bytes:
    """Convert as ``convert.quantise.quantise`` does, which checks its arguments as well."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rebuild_batch_one(encoder).save(folder / converter.ENCODER)
        np.save(folder / converter.REPRESENTATIVE, np.ascontiguousarray(representative, np.float32))
        # The process of a conversion keeps its output from the command's.
        with hold_output():
            converter.main(folder)
        return (folder / converter.MODEL).read_bytes()
