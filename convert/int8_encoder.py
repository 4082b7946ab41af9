"""An encoder in int8, as it goes into a bundle."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from boards.fit.check import Assessment
from boards.fit.graph import Graph, Tensor


@dataclass(frozen=True)
class Int8Encoder:
    """An int8 encoder.

    Attributes:
        model: Content of ``encoder.tflite``.
        assessment: Graph, arena and compiled form on the target.
    """

    model: bytes
    assessment: Assessment

    @property
    def graph(self) -> Graph:
        return self.assessment.graph

    @property
    def hash(self) -> str:
        """Model hash that records carry: the first 8 bytes of the model's SHA-256, as 16 hex digits."""
        return hashlib.sha256(self.model).hexdigest()[:16]

    @property
    def input_quantisation(self) -> tuple[float, int]:
        """Scale and zero point of the input."""
        return _quantisation(self.graph.inputs[0])

    @property
    def output_quantisation(self) -> tuple[float, int]:
        """Scale and zero point of the latent."""
        return _quantisation(self.graph.outputs[0])


def _quantisation(tensor: Tensor) -> tuple[float, int]:
    assert tensor.scale is not None and tensor.zero_point is not None
    return float(tensor.scale), int(tensor.zero_point)
