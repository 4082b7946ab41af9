"""The encoder on stock MicroPython: what ``boards/fit/epicnn.py`` compiled, run by ``kernels.py``.

Weights are read from the file block by block, so that memory holds one arena of activations and one block. An
inference allocates nothing.
"""

import binascii
import gc
import hashlib
import struct
import sys
from array import array

from firmware_py.micropython import kernels
from firmware_py.micropython.kernels import FIELDS
from firmware_py.micropython.model import ModelError

MAGIC = b"EPICNN1\0"
# Magic, SHA-256 of what follows, model hash, then layers, arena, weights, sums, factors, input offset, input length,
# output offset, latent length, golden vectors; sizes in bytes.
HEADER = "<8s32s8s10i"
HASHED_FROM = 40
# Architectures in ``sys.implementation._mpy`` whose emitter mis-encodes jumps over 2 kB, silently, before 1.26.
_XTENSA = (9, 10)
_XTENSA_FIXED = (1, 26)

_OPERATOR = FIELDS.index("operator")
_TARGET = FIELDS.index("target")
_IN_CHANNELS = FIELDS.index("in_channels")
_OUT_HEIGHT = FIELDS.index("out_height")
_OUT_WIDTH = FIELDS.index("out_width")
_OUT_CHANNELS = FIELDS.index("out_channels")
_KERNEL_HEIGHT = FIELDS.index("kernel_height")
_KERNEL_WIDTH = FIELDS.index("kernel_width")
_BLOCKS = tuple([(n, FIELDS.index("blocks_%d" % n)) for n in (24, 32, 40)])


class ViperModel:
    """Latents of ``path``, a compiled encoder of the model ``bundle``; ``feed`` is called between blocks.

    The file's golden vectors are computed once, and must come out as LiteRT's reference kernels have them.
    Raises ``ModelError``.
    """

    def __init__(self, bundle, path, feed):
        architecture = getattr(sys.implementation, "_mpy", 0) >> 10 & 15
        if architecture in _XTENSA and sys.implementation.version[:2] < _XTENSA_FIXED:
            raise ModelError("model: expected MicroPython 1.26 or later on this processor; install it")
        self._path = path
        self._feed = feed
        self.latent = bundle.latent
        try:
            # Stays open: opening allocates.
            self._file = open(path, "rb")
        except OSError:
            raise ModelError("%s: not found; install again with: epic board install" % path) from None
        header = bytearray(struct.calcsize(HEADER))
        self._read(header, len(header))
        fields = struct.unpack(HEADER, header)
        if fields[0] != MAGIC:
            raise ModelError("%s: not a compiled encoder of this version; install again" % path)
        if fields[2] != bundle.model_hash:
            raise ModelError(
                "%s: compiled from model %s, the manifest says %s; install again"
                % (path, binascii.hexlify(fields[2]).decode(), binascii.hexlify(bundle.model_hash).decode())
            )
        n_layers, arena, weights, sums, factors = fields[3:8]
        self._input, self._input_bytes, self._output, latent, self._vectors = fields[8:]
        if latent != bundle.latent or self._input_bytes != bundle.time * bundle.width * bundle.sources:
            raise ModelError("%s: not of the manifest's shape; install again" % path)
        try:
            # The largest first, while the heap is whole.
            gc.collect()
            self._arena = memoryview(bytearray(arena))
            self._weights = memoryview(bytearray(weights))
            self._sums = memoryview(array("i", bytearray(sums)))
            self._factors = memoryview(array("i", bytearray(factors)))
            self._verify(fields[1])
            self._file.seek(len(header))
            self._layers = []
            for _ in range(n_layers):
                layer = memoryview(array("i", [0] * len(FIELDS)))
                self._read(layer, 4 * len(FIELDS))
                self._layers.append(layer)
            self._blocks_at = self._file.tell()
            self._compile()
        except MemoryError:
            raise ModelError(
                "%s: needs %d B for buffers and 10 kB for kernels, free are %d B; take a smaller model"
                % (path, arena + weights + sums + factors, gc.mem_free())
            ) from None
        gc.collect()
        self._test()

    def _verify(self, expected):
        digest = hashlib.sha256()
        self._file.seek(HASHED_FROM)
        while n := self._file.readinto(self._weights):
            digest.update(self._weights[:n])
            self._feed()
        if digest.digest() != expected:
            raise ModelError("%s: SHA-256 is not the file's own; it is damaged, install again" % self._path)

    def _compile(self):
        """Make the kernels that this model needs, and nothing for operators that it lacks."""
        self._convolve = {}
        for n, place in _BLOCKS:
            for layer in self._layers:
                if layer[place] and n not in self._convolve:
                    self._convolve[n] = kernels.convolve(n)
                    gc.collect()
        operators = [layer[_OPERATOR] for layer in self._layers]
        self._depthwise = kernels.depthwise() if kernels.DEPTHWISE in operators else None
        gc.collect()
        self._add = kernels.add() if kernels.ADDITION in operators else None
        gc.collect()
        self._requantise = kernels.requantise()
        self._flip = kernels.flip()

    def _test(self):
        """Compute the golden vectors behind the weights; firmware that computes something else is refused."""
        got = bytearray(self.latent)
        expected = bytearray(self.latent)
        values = bytearray(self._input_bytes)
        for number in range(self._vectors):
            self._file.seek(-(self._vectors - number) * (len(values) + len(expected)), 2)
            self._read(values, len(values))
            self._read(expected, len(expected))
            self.encode(values, got)
            if got != expected:
                wrong = sum([got[i] != expected[i] for i in range(len(got))])
                raise ModelError(
                    "%s: %d of %d values of golden vector %d differ from LiteRT's reference kernels; expected none. "
                    "This firmware's viper emitter is at fault, take MicroPython 1.27 or later"
                    % (self._path, wrong, len(got), number)
                )

    def encode(self, values, latent):
        """int8 ``(time, width, sources)`` -> int8 into ``latent``. Raises ``ModelError``."""
        self._file.seek(self._blocks_at)
        self._flip(self._input_bytes, 0, values, 0, self._arena, self._input)
        for layer in self._layers:
            operator = layer[_OPERATOR]
            if operator == kernels.CONVOLUTION:
                self._run_convolution(layer)
            elif operator == kernels.DEPTHWISE:
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
