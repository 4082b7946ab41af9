"""Muon for every kernel of a network: dense, convolution and attention.

Muon replaces a step's momentum by the nearest matrix whose singular values are all 1. Weak directions of the gradient
are then learnt as fast as strong ones (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks";
Liu et al. 2025, arXiv 2502.16982). In a map, the strong directions are the trend with depth and the weak ones the
texture (docs/decisions/0015).
"""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

# Layers and variables without Muon. A depthwise convolution does not mix channels. The last layer has two outputs of
# different scale. Attention biases are matrices (heads, values per head) in shape only.
_LEFT_TO_ADAMW = ("depthwise_kernel", "depth/kernel", "out/kernel", "table", "bias")


@keras.saving.register_keras_serializable("epic")
class Muon(keras.optimizers.Muon):
    """Extend ``keras.optimizers.Muon``, which takes dense kernels alone, to convolution and attention kernels.

    Each kernel is reshaped to a matrix (summed inputs, outputs). AdamW updates biases and other vectors, depthwise
    kernels, tables and the layer called ``out``, at the same rate. Older checkpoints applied Muon to attention biases;
    their moments are reset.
    """

    def build(self, variables: list) -> None:
        """Build the optimiser's state and store each variable's matrix shape."""
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
    """Return rows (summed inputs) and columns (outputs) of a kernel."""
    shape = tuple(variable.shape)
    if len(shape) < 2:
        return math.prod(shape), 1
    # Attention kernels are (inputs, heads, values per head), except the last one: (heads, values per head, outputs).
    outputs = 2 if len(shape) == 3 and "attention_output" not in variable.path else 1
    return math.prod(shape[:-outputs]), math.prod(shape[-outputs:])
