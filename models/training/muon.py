"""Muon for every kernel of a network: dense, convolution and attention alike.

A step's momentum is replaced by the nearest matrix whose singular values are all 1, so that directions in which the
gradient is weak are learnt as fast as the strong ones (Jordan et al. 2024, "Muon: an optimizer for hidden layers in
neural networks"; Liu et al. 2025, arXiv 2502.16982). In a map the strong ones are its trend with depth, the weak ones
its texture: docs/decisions/0015.
"""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

# What is no mixing of channels: of a depthwise convolution each channel has its own kernel, the last layer ends in two
# quantities of their own scale, and attention's biases are matrices (heads, values a head) by their shape alone.
_LEFT_TO_ADAMW = ("depthwise_kernel", "depth/kernel", "out/kernel", "table", "bias")


@keras.saving.register_keras_serializable("epic")
class Muon(keras.optimizers.Muon):
    """``keras.optimizers.Muon``, which takes dense kernels alone, for kernels of convolutions and attention as well.

    Each is one matrix from all that an output sums over to the outputs. Biases and other vectors, depthwise kernels,
    tables and the layer called ``out`` are learnt by AdamW at the same rate. A checkpoint of a version that gave Muon
    the biases of attention begins with fresh moments.
    """

    def build(self, variables: list) -> None:
        """As of every Keras optimiser; remembers each variable as a matrix."""
        if not self.built:
            self._matrices = [_as_matrix(variable) for variable in variables]
        super().build(variables)

    def _should_use_adamw(self, variable: Any) -> bool:
        return len(variable.shape) < 2 or variable.path.endswith(_LEFT_TO_ADAMW)

    def _muon_update_step(self, gradient: Any, variable: Any, lr: Any, m: Any) -> None:
        self.assign_add(m, ops.add(gradient, m * (self.momentum - 1)))
        ahead = ops.reshape(
            ops.add(gradient, self.momentum * m), self._matrices[self._get_variable_index(variable)]
        )
        update = self.lr_adjust(lr * self.zeropower_via_newtonschulz5(ahead, self.ns_steps))
        self.assign_sub(variable, ops.reshape(update, variable.shape))


def _as_matrix(variable: Any) -> tuple[int, int]:
    """Rows and columns of a kernel: what is summed over, and the outputs."""
    shape = tuple(variable.shape)
    if len(shape) < 2:
        return math.prod(shape), 1
    # Attention's kernels: (inputs, heads, values a head), but the last one (heads, values a head, outputs).
    outputs = 2 if len(shape) == 3 and "attention_output" not in variable.path else 1
    return math.prod(shape[:-outputs]), math.prod(shape[-outputs:])
