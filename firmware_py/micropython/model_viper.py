"""The encoder on stock MicroPython: what ``boards/fit/epicnn.py`` compiled, run by ``kernels.py``.

Weights are read from the file block by block, so that memory holds one arena of activations and one block. An
inference allocates nothing.
"""

import binascii
import gc
import hashlib
import struct
from array import array

from firmware_py.micropython.epicnn import (
    ADDITION,
    CONVOLUTION,
    DEPTHWISE,
    FIELDS,
    HASHED_FROM,
    HEADER,
    HEADER_BYTES,
    MAGIC,
)
from firmware_py.micropython.model import ModelError
from firmware_py.micropython.padding import length_of

_OPERATOR = FIELDS.index("operator")
_TARGET = FIELDS.index("target")
_IN_CHANNELS = FIELDS.index("in_channels")
_OUT_HEIGHT = FIELDS.index("out_height")
_OUT_WIDTH = FIELDS.index("out_width")
_OUT_CHANNELS = FIELDS.index("out_channels")
_KERNEL_HEIGHT = FIELDS.index("kernel_height")
_KERNEL_WIDTH = FIELDS.index("kernel_width")
_BLOCKS = tuple([(n, FIELDS.index("blocks_%d" % n)) for n in (24, 32, 40)])


class Memory:
    """The buffers of ``path``, a compiled encoder, in the order of their size.

    Raises:
        ModelError: It is not a compiled encoder, or the heap is too small for it.
    """

    def __init__(self, path):
        try:
            # Stays open: opening allocates.
            self.file = open(path, "rb")
        except OSError:
            raise ModelError("%s: not found; install again with: epic board install" % path) from None
        header = self.file.read(HEADER_BYTES)
        if len(header) < HEADER_BYTES:
            raise ModelError("%s: ends too early; install again" % path)
        self.header = struct.unpack(HEADER, header)
        if self.header[0] != MAGIC:
            raise ModelError("%s: not a compiled encoder of this version; install again" % path)
        arena, weights, sums, factors = self.header[4:8]
        try:
            gc.collect()
            self.arena = memoryview(bytearray(arena))
            self.weights = memoryview(bytearray(weights))
            self.sums = _words(sums)
            self.factors = _words(factors)
        except MemoryError:
            raise ModelError(
                "%s: needs %d B for buffers, free are %d B; take a smaller model"
                % (path, arena + weights + sums + factors, gc.mem_free())
            ) from None


class ViperModel:
    """Latents of a compiled encoder of the model ``bundle``, in its ``memory``; ``feed`` is called between blocks.

    The file's golden vectors are computed once, and must come out as LiteRT's reference kernels have them.
    Raises ``ModelError``.
    """

    def __init__(self, bundle, memory, feed):
        self._path = bundle.compiled_path
        self._feed = feed
        self.latent = bundle.latent
        self._file = memory.file
        fields = memory.header
        if fields[2] != bundle.model_hash:
            raise ModelError(
                "%s: compiled from model %s, the manifest says %s; install again"
                % (
                    self._path,
                    binascii.hexlify(fields[2]).decode(),
                    binascii.hexlify(bundle.model_hash).decode(),
                )
            )
        self._input, self._input_bytes, self._output, latent, self._vectors = fields[8:]
        if latent != bundle.latent or self._input_bytes != bundle.time * bundle.width * bundle.sources:
            raise ModelError("%s: not of the manifest's shape; install again" % self._path)
        self._arena = memory.arena
        self._weights = memory.weights
        self._sums = memory.sums
        self._factors = memory.factors
        # A part of the arena, which an inference overwrites.
        self.input = self._arena[self._input : self._input + self._input_bytes]
        self._verify(fields[1])
        self._file.seek(HEADER_BYTES)
        self._layers = []
        try:
            for _ in range(fields[3]):
                layer = _words(4 * len(FIELDS))
                self._read(layer, 4 * len(FIELDS))
                self._layers.append(layer)
            self._blocks_at = self._file.tell()
            self._load_kernels()
        except MemoryError:
            raise ModelError(
                "%s: no heap for its kernels, free are %d B; take a smaller model"
                % (self._path, gc.mem_free())
            ) from None
        gc.collect()
        self._test()

    def _verify(self, expected):
        digest = hashlib.sha256()
        self._end = length_of(self._file)
        self._file.seek(HASHED_FROM)
        left = self._end - HASHED_FROM
        while n := min(left, self._file.readinto(self._weights)):
            digest.update(self._weights[:n])
            left -= n
            self._feed()
        if digest.digest() != expected:
            raise ModelError("%s: SHA-256 is not the file's own; it is damaged, install again" % self._path)

    def _load_kernels(self):
        """Load the kernels that this model needs, and nothing for operators that it lacks."""
        self._convolve = {}
        for n, place in _BLOCKS:
            for layer in self._layers:
                if layer[place] and n not in self._convolve:
                    self._convolve[n] = _kernel("convolve_%d" % n)
        operators = [layer[_OPERATOR] for layer in self._layers]
        self._depthwise = _kernel("depthwise") if DEPTHWISE in operators else None
        self._add = _kernel("add") if ADDITION in operators else None
        self._requantise = _kernel("requantise")
        self._flip = _kernel("flip")

    def _test(self):
        """Compute the golden vectors behind the weights; firmware that computes something else is refused."""
        got = bytearray(self.latent)
        expected = bytearray(self.latent)
        for number in range(self._vectors):
            self._file.seek(self._end - (self._vectors - number) * (self._input_bytes + len(expected)))
            self._read(self.input, self._input_bytes)
            self._read(expected, len(expected))
            self.encode(got)
            if got != expected:
                wrong = sum([got[i] != expected[i] for i in range(len(got))])
                raise ModelError(
                    "%s: %d of %d values of golden vector %d differ from LiteRT's reference kernels; expected none. "
                    "This firmware's viper emitter is at fault, take MicroPython 1.27 or later"
                    % (self._path, wrong, len(got), number)
                )

    def encode(self, latent):
        """int8 ``(time, width, sources)`` in ``input`` -> int8 into ``latent``. Raises ``ModelError``."""
        self._file.seek(self._blocks_at)
        self._flip(self._input_bytes, 0, self._arena, self._input, self._arena, self._input)
        for layer in self._layers:
            operator = layer[_OPERATOR]
            if operator == CONVOLUTION:
                self._run_convolution(layer)
            elif operator == DEPTHWISE:
                n = layer[_OUT_CHANNELS]
                self._read_block(layer[_KERNEL_HEIGHT] * layer[_KERNEL_WIDTH], n)
                self._run_block(layer, self._depthwise, self._arena, n, 0)
            else:
                self._read(self._factors, 2048)
                self._add(0, 0, self._arena, self._factors, layer)
                self._feed()
        self._flip(self.latent, 0, self._arena, self._output, latent, 0)

    def _run_convolution(self, layer):
        taps = layer[_KERNEL_HEIGHT] * layer[_KERNEL_WIDTH] * layer[_IN_CHANNELS]
        channel = 0
        for n, place in _BLOCKS:
            for _ in range(layer[place]):
                self._read_block(taps, n)
                self._run_block(layer, self._convolve[n], 0, n, channel)
                channel += n

    def _read_block(self, taps, n):
        self._read(self._factors, 16 * n)
        self._read(self._weights, taps * n)

    def _run_block(self, layer, kernel, second, n, channel):
        channels = layer[_OUT_CHANNELS]
        count = min(n, channels - channel)
        start = layer[_TARGET] + channel
        for row in range(layer[_OUT_HEIGHT]):
            kernel(self._weights, second, self._weights, self._arena, self._sums, layer, row)
            self._requantise(0, 0, self._sums, self._factors, self._arena, layer, start, n, count)
            start += layer[_OUT_WIDTH] * channels
        self._feed()

    def _read(self, buffer, n):
        if self._file.readinto(buffer, n) != n:
            raise ModelError("%s: ends too early; install again" % self._path)


def _words(size):
    """An int32 array of ``size`` bytes as a view."""
    return memoryview(array("i", bytearray(size)))


def _kernel(name):
    """The function of ``kernels.py`` as the installer compiled it, else compiled here."""
    try:
        made = __import__("firmware_py.micropython.native." + name, None, None, (name,)).kernel
    except (ImportError, ValueError):
        # None there, or of another processor.
        from firmware_py.micropython.kernels import compile_kernel

        made = compile_kernel(name)
    gc.collect()
    return made
