"""Bound the scratch memory that a board's kernels take from the tensor arena.

The arena is measured with TFLite-Micro's reference kernels, which need no scratch memory. Optimised kernels of a
board's firmware unroll or pad their inputs into scratch buffers, planned into the same arena for the running operator.
These upper bounds follow the libraries' own buffer sizes.
"""

from __future__ import annotations

from collections.abc import Callable

from boards.fit.graph import Graph, Step

# Alignment of buffers and row padding, bytes.
ALIGNMENT = 16
ESP_NN_ALIGNMENT_BYTES = 64


def scratch_bytes(graph: Graph, kernels: str) -> int:
    """Return the largest scratch size in bytes of any operator of ``graph`` in ``kernels`` (a key of ``KERNELS``)."""
    return max((KERNELS[kernels](step) for step in graph.steps), default=0)


def _reference(step: Step) -> int:
    return 0


def _cmsis_nn(step: Step) -> int:
    """CMSIS-NN, arm_*_get_buffer_size: two columns of int16 (DSP) or four of int8 (Helium), and kernel sums."""
    if step.operator in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        out_channels, height, width, in_channels = step.inputs[1].shape
        return 4 * _padded(height * width * in_channels) + 4 * max(out_channels, in_channels)
    if step.operator in ("FULLY_CONNECTED", "AVERAGE_POOL_2D"):
        return 4 * step.outputs[0].shape[-1]
    return 0


def _esp_nn(step: Step) -> int:
    """ESP-NN, esp_nn_get_*_scratch_size_esp32s3: an aligned copy of the filter and a padded one of the input.

    A depthwise convolution makes both in int16.
    """
    if step.operator not in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        return 0
    out_channels, height, width, in_channels = step.inputs[1].shape
    _, out_height, out_width, _ = step.outputs[0].shape
    _, in_height, in_width, channels = step.inputs[0].shape
    padded_input = (
        max(in_height, (out_height - 1) * step.stride[0] + height)
        * max(in_width, (out_width - 1) * step.stride[1] + width)
        * channels
    )
    filters = height * width * _padded(in_channels) * out_channels
    if step.operator == "DEPTHWISE_CONV_2D":
        return 2 * (filters + padded_input) + ESP_NN_ALIGNMENT_BYTES
    return filters + padded_input + 24 * in_channels + 8 * out_channels + ESP_NN_ALIGNMENT_BYTES


def _padded(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


KERNELS: dict[str, Callable[[Step], int]] = {
    "reference": _reference,
    "cmsis-nn": _cmsis_nn,
    "esp-nn": _esp_nn,
}
