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
# Bytes for alignment and for the reads of ESP-NN's assembly before and after a buffer.
ESP_NN_MARGIN_BYTES = 64


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
    """Return the scratch size that ESP-NN 1.2 requests on an ESP32-S3, in bytes.

    Follows esp_nn_get_conv_scratch_size_esp32s3 and esp_nn_get_depthwise_conv_scratch_size_esp32s3. They count both
    copies of the filter and both ways of padding the input, although each call uses only one. Later releases request
    less.
    """
    if step.operator not in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        return 0
    return _esp_nn_depthwise(step) if step.operator == "DEPTHWISE_CONV_2D" else _esp_nn_convolution(step)


def _esp_nn_convolution(step: Step) -> int:
    out_channels, height, width, channels = step.inputs[1].shape
    _, in_height, in_width, _ = step.inputs[0].shape
    _, out_height, out_width, _ = step.outputs[0].shape
    pad_height, pad_width = (_padding(step, axis) for axis in (0, 1))
    even_channels = _padded(channels, 8)
    if (height, width) == step.stride == (1, 1) and not pad_height and not pad_width:
        transposed = 0 if in_height * in_width < 8 else 2 * 8 * even_channels
        copied = in_height * in_width * even_channels if channels % 8 else 0
        return copied + even_channels * out_channels + transposed + ESP_NN_MARGIN_BYTES
    row, window = width * channels, height * width * channels
    if row < ALIGNMENT <= window:
        columns = _padded(window)
        return 4 * out_channels + (out_channels + 1) * columns + 2 * ALIGNMENT + ESP_NN_MARGIN_BYTES
    filters = height * width * _padded(channels) * out_channels + _padded(row) * height * out_channels
    padded_input = 0
    if pad_height or pad_width:
        padded_input = (in_height + 2 * pad_height) * (in_width + 2 * pad_width) * channels
    right = max(0, out_width * step.stride[1] + width - 1 - in_width)
    bottom = max(0, out_height * step.stride[0] + height - 1 - in_height)
    edge = (in_height + bottom) * (in_width + right) * channels if right or bottom else 0
    return filters + padded_input + edge + 4 * out_channels + ESP_NN_MARGIN_BYTES


def _esp_nn_depthwise(step: Step) -> int:
    _, height, width, out_channels = step.inputs[1].shape
    _, in_height, in_width, channels = step.inputs[0].shape
    _, out_height, out_width, _ = step.outputs[0].shape
    pad_height, pad_width = (_padding(step, axis) for axis in (0, 1))
    filters, values = height * width * out_channels, in_height * in_width * channels
    if out_channels != channels:
        return 2 * (filters + values) + 32
    if channels % 8:
        wide = _padded(channels, 8)
        sizes = (2 * height * width * wide, 2 * in_height * in_width * wide, out_height * out_width * wide)
        return sum(map(_padded, sizes)) + 12 * wide + ALIGNMENT
    if (height, width) != (3, 3) or channels < 12:
        whole = 2 * (filters + values)
        # Above 48 KiB the library copies only the input rows under the filter.
        tiled = whole > 48 << 10 and (height, width) != (3, 3)
        return (2 * (filters + in_width * height * channels) if tiled else whole) + 32
    if pad_height or pad_width:
        extra_height, extra_width = 2 * pad_height, 2 * pad_width
    else:
        extra_height = out_height * step.stride[0] + 2 - in_height
        extra_width = out_width * step.stride[1] + 2 - in_width
    if channels % ALIGNMENT == 0:
        row = (in_width + extra_width) * channels
        whole = (in_height + extra_height) * row
        return filters + (whole if whole <= 40 << 10 else height * row) + ALIGNMENT
    wide = _padded(channels)
    grown = (in_height + extra_height) * (in_width + extra_width)
    return (9 + grown + out_height * out_width) * wide + ESP_NN_MARGIN_BYTES


def _padding(step: Step, axis: int) -> int:
    """Rows or columns that TFLite puts before the input; its sizes tell SAME from VALID."""
    size, out, kernel = (t.shape[axis + 1] for t in (step.inputs[0], step.outputs[0], step.inputs[1]))
    return max(0, (out - 1) * step.stride[axis] + kernel - size) // 2


def _padded(count: int, to: int = ALIGNMENT) -> int:
    return -(-count // to) * to


KERNELS: dict[str, Callable[[Step], int]] = {
    "reference": _reference,
    "cmsis-nn": _cmsis_nn,
    "esp-nn": _esp_nn,
}
