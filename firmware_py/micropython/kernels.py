"""The arithmetic of an int8 encoder for MicroPython's viper emitter, bit for bit that of LiteRT's reference kernels.

Activations are bytes q + 128, so that after a ReLU a byte is the value less its zero point. Weights are bytes q + 128;
128 times the sum of a pixel's values is subtracted once a pixel. A zero contributes nothing and is skipped, and so
does the padding. Sums stay in local variables.

The kernels are kept as text. The installer compiles it for the board's processor (``native/``), so that the board loads
machine code and neither this module nor a compiler's heap. Without that a board compiles what its model needs. Firmware
without the emitter runs the same text as bytecode, slowly.

Rules of viper: the first two arguments get registers. Only ``ptr8`` and ``ptr32`` move, by ``int(pointer) + bytes``.
On 64-bit machines ``ptr32`` reads unsigned, so nothing that is negative is stored. No function is over 4 kB, beyond
which Thumb jumps wrongly before MicroPython 1.27; on Xtensa it is 2 kB before 1.26, which ``ViperModel`` refuses.
"""

import sys

from firmware_py.micropython.epicnn import FIELDS
from firmware_py.micropython.model import ModelError

NAMES = ("convolve_24", "convolve_32", "convolve_40", "depthwise", "requantise", "add", "flip")
# Architectures in ``sys.implementation._mpy`` whose emitter mis-encodes jumps over 2 kB, silently, before 1.26.
_XTENSA = (9, 10)
_XTENSA_FIXED = (1, 26)
# Added to every sum that is stored, so that it is positive.
SUM_OFFSET = 1 << 29
# Added to every bias and every entry of ADD's tables, likewise.
BIAS_OFFSET = 1 << 28

# The window of one output pixel row: ``{name}`` are places in a layer's record.
_WINDOW = """
    stride = layer[{stride_width}]
    in_height = layer[{in_height}]
    in_width = layer[{in_width}]
    channels = layer[{in_channels}]
    kernel_width = layer[{kernel_width}]
    zero = layer[{in_zero}]
    source = layer[{source}]
    top = row * layer[{stride_height}] - layer[{pad_top}]
    left = 0 - layer[{pad_left}]
    first_y = 0
    if top < 0:
        first_y = 0 - top
    last_y = layer[{kernel_height}]
    if top + last_y > in_height:
        last_y = in_height - top
    pixels = layer[{out_width}]
    while pixels > 0:
        pixels -= 1
        first_x = 0
        if left < 0:
            first_x = 0 - left
        last_x = kernel_width
        if left + last_x > in_width:
            last_x = in_width - left
"""

# For each value that is not zero, an outer product into the sums of a block of {n} channels.
_CONVOLVE = """
def kernel(w: ptr8, x: int, weights: ptr8, data: ptr8, sums: ptr32, layer: ptr32, row: int):
{window}
        total = 536870912
{start}
        y = first_y
        while y < last_y:
            w = ptr8(int(weights) + (y * kernel_width + first_x) * channels * {n})
            at = source + ((top + y) * in_width + left + first_x) * channels
            end = at + (last_x - first_x) * channels
            while at < end:
                x = data[at] - zero
                at += 1
                if x:
                    total += x
{products}
                w = ptr8(int(w) + {n})
            y += 1
{store}
        sums[{n}] = total
        sums = ptr32(int(sums) + {step})
        left += stride
"""

# Eight channels at once, each with its own values.
_DEPTHWISE = """
def kernel(w: ptr8, x: ptr8, weights: ptr8, data: ptr8, sums: ptr32, layer: ptr32, row: int):
{window}
        group = 0
        while group < channels:
{start}
            y = first_y
            while y < last_y:
                w = ptr8(int(weights) + (y * kernel_width + first_x) * channels + group)
                x = ptr8(int(data) + source + ((top + y) * in_width + left + first_x) * channels + group)
                taps = last_x - first_x
                while taps > 0:
                    taps -= 1
{products}
                    w = ptr8(int(w) + channels)
                    x = ptr8(int(x) + channels)
                y += 1
{store}
            sums = ptr32(int(sums) + 32)
            group += 8
        sums[0] = 536870912
        sums = ptr32(int(sums) + 4)
        left += stride
"""

# With |a| < 2^28 and a multiplier m, high 16 bits and low 16 bits apart: a m / 2^30, rounded down, in 32 bits. Then
# LiteRT's rounding: twice in convolutions and ADD, once in FULLY_CONNECTED.
_SCALE = """
{indent}b = a & 32767
{indent}a = a >> 15
{indent}a = 2 * a * high + ((((a * low + ((b * low) >> 15)) >> 1) + b * high) >> 14)
"""
_ROUND_TWICE = """
{indent}a = (a + 1) >> 1
{indent}if shift > 0:
{indent}    a = (a + (1 << (shift - 1)) + (a >> 31)) >> shift
"""
_LIMIT = """
{indent}a += zero
{indent}if a < least:
{indent}    a = least
{indent}if a > most:
{indent}    a = most
"""

# ``stride`` sums a pixel and their count of 128s, of which the first ``count`` become bytes from ``start`` on.
_REQUANTISE = """
def kernel(
    a: int, b: int, sums: ptr32, factors: ptr32, data: ptr8, layer: ptr32, start: int, stride: int, count: int
):
    out = ptr8(int(data) + start)
    zero = layer[{out_zero}]
    least = layer[{low}]
    most = layer[{high}]
    once = layer[{rounds_once}]
    pixels = layer[{out_width}]
    channels = layer[{out_channels}]
    while pixels > 0:
        pixels -= 1
        offset = 805306368 + 128 * (sums[stride] - 536870912)
        factor = ptr32(int(factors) + 0)
        k = 0
        while k < count:
            a = sums[k] + factor[0] - offset
            high = factor[1]
            low = factor[2]
            shift = factor[3]
            factor = ptr32(int(factor) + 16)
{scale}
            if once:
                a = (a + (1 << shift)) >> (shift + 1)
            else:
{round_twice}
{limit}
            out[k] = a
            k += 1
        sums = ptr32(int(sums) + 4 * stride + 4)
        out = ptr8(int(out) + channels)
"""

# Each input by its table of 256 scaled values, and one scaling of their sum.
_ADD = """
def kernel(a: int, b: int, data: ptr8, tables: ptr32, layer: ptr32):
    one = ptr8(int(data) + layer[{source}])
    other = ptr8(int(data) + layer[{other}])
    out = ptr8(int(data) + layer[{target}])
    zero = layer[{out_zero}]
    least = layer[{low}]
    most = layer[{high}]
    high = layer[{multiplier_high}]
    low = layer[{multiplier_low}]
    shift = layer[{shift}]
    end = layer[{out_height}] * layer[{out_width}] * layer[{out_channels}]
    k = 0
    while k < end:
        a = tables[one[k]] + tables[256 + other[k]] - 536870912
{scale}
{round_twice}
{limit}
        out[k] = a
        k += 1
"""

_FLIP = """
def kernel(n: int, k: int, data: ptr8, at: int, out: ptr8, out_at: int):
    data = ptr8(int(data) + at)
    out = ptr8(int(out) + out_at)
    while k < n:
        out[k] = data[k] ^ 128
        k += 1
"""

_PLACES = {name: place for place, name in enumerate(FIELDS)}


def text_of(name):
    """Source of a module whose function ``kernel`` is one of ``NAMES``.

    convolve_N    sums of one output row for a block of N channels: ``kernel(w, 0, weights, data, sums, layer, row)``
    depthwise     sums of one output row of all channels: ``kernel(w, data, weights, data, sums, layer, row)``
    requantise    sums of one output row to bytes: ``kernel(0, 0, sums, factors, arena, layer, start, stride, count)``
    add           the sum of two layers: ``kernel(0, 0, arena, tables, layer)``
    flip          copy n bytes from int8 to q + 128, or back: ``kernel(n, 0, data, at, out, out_at)``
    """
    if name.startswith("convolve_"):
        text = _unrolled(_CONVOLVE, int(name[9:]), 8, 20, "a%d += x * w[%d]")
    elif name == "depthwise":
        text = _unrolled(_DEPTHWISE, 8, 12, 20, "a%d += (x[%d] - zero) * (w[%d] - 128)")
    elif name == "requantise":
        text = _scaled(_REQUANTISE, 12, 16)
    elif name == "add":
        text = _scaled(_ADD, 8, 8)
    else:
        text = _FLIP
    return "@micropython.viper\n" + text.strip() + "\n"


def compile_kernel(name):
    """The function of a kernel's text, native where the firmware can.

    Raises:
        ModelError: This firmware's emitter is known to be wrong.
    """
    architecture = getattr(sys.implementation, "_mpy", 0) >> 10 & 15
    if architecture in _XTENSA and sys.implementation.version[:2] < _XTENSA_FIXED:
        raise ModelError("model: expected MicroPython 1.26 or later on this processor; install it")
    text = text_of(name)
    names = {}
    try:
        exec(text, names)
    except SyntaxError:
        names = {"int": _Address, "ptr8": _bytes_at, "ptr32": _words_at}
        exec(text.split("\n", 1)[1], names)
    return names["kernel"]


def _unrolled(text, n, outer, inner, product):
    """``text`` with ``n`` sums, begun and stored at indent ``outer``, added to at ``inner``."""
    arguments = product.count("%d")
    start = "".join(["%sa%d = 536870912\n" % (" " * outer, k) for k in range(n)])
    store = "".join(["%ssums[%d] = a%d\n" % (" " * outer, k, k) for k in range(n)])
    products = "".join([" " * inner + product % ((k,) * arguments) + "\n" for k in range(n)])
    window = _WINDOW.format(**_PLACES)
    return text.format(window=window, start=start, store=store, products=products, n=n, step=4 * n + 4)


def _scaled(text, indent, round_indent):
    return text.format(
        scale=_SCALE.format(indent=" " * indent),
        round_twice=_ROUND_TWICE.format(indent=" " * round_indent),
        limit=_LIMIT.format(indent=" " * indent),
        **_PLACES,
    )


class _Address:
    """In bytecode, what ``int(pointer)`` is to viper: a view and an offset into it in bytes."""

    def __init__(self, view, offset=0):
        self.view = view
        self.offset = offset

    def __add__(self, offset):
        return _Address(self.view, self.offset + offset)


def _bytes_at(address):
    return memoryview(address.view)[address.offset :]


def _words_at(address):
    return address.view[address.offset // 4 :]
