"""The encoder's kernels as machine code for Xtensa with windowed registers, as the ESP32 and ESP32-S3 run them.

    python benchmarks/device/xtensa_kernels.py [--model ZOO_DIR]... [--inputs N]

MicroPython has no port for an emulated Xtensa. So the machine code of `epic board install` is taken out of its `.mpy`
files, and called by a loop of ten instructions under QEMU's user-mode emulation (CPU dc233c), in the order and with the
arguments of ``ViperModel.encode``. What the code asks of MicroPython, the conversion of its arguments, does nothing
there. Needs binutils-xtensa-lx106 and qemu-user-static. The last line is the number of latent values that differ.
"""

from __future__ import annotations

import argparse
import struct
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from micropython_encoder import codes_of

from boards.fit.epicnn import compile_encoder, reference_latents
from boards.install.micropython import cross
from firmware_py.inference.bundle import load_bundle
from firmware_py.micropython import kernels
from firmware_py.micropython.epicnn import (
    ADDITION,
    CONVOLUTION,
    DEPTHWISE,
    FIELDS,
    HEADER,
    HEADER_BYTES,
)
from testbed.run import DEFAULT_MODEL

PROCESSOR, CPU = "xtensawin", "dc233c"
TEXT_AT, IMAGE_AT = 0x1000_0000, 0x1001_0000
# Bytes of an entry in the list of calls: function, function object, number of arguments, unused, 12 arguments.
CALL_BYTES = 64
# Entries of MicroPython's table of functions for native code; each here returns its first argument.
FUNCTIONS = 64
_FUN_TABLE, _STR, _TUPLE = 0, 5, 10
_BYTECODE = 0

# ENTRY, RETW and CALLX8 are given as bytes, for the assembler knows a processor without windows.
PROGRAM = """
    .text
    .global _start
_start:
    movi a2, {calls}
    movi a3, {calls_end}
again:
    l32i a8, a2, 0
    l32i a10, a2, 4
    l32i a11, a2, 8
    movi a12, 0
    addi a13, a2, 16
    .byte 0xe0, 0x08, 0x00
    addi a2, a2, {call_bytes}
    bltu a2, a3, again
    movi a6, 1
    movi a3, {latent}
    movi a4, {latent_bytes}
    movi a2, 13
    syscall
    movi a6, 0
    movi a2, 118
    syscall
    .org {identity}
    .byte 0x36, 0x41, 0x00
    .byte 0x1d, 0xf0
    .org {image}
    .incbin "image"
"""
IDENTITY = 0x1000


def read_uint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    while True:
        value = value << 7 | data[at] & 127
        at += 1
        if not data[at - 1] & 128:
            return value, at


def native_code(mpy: bytes) -> tuple[bytes, int]:
    """The machine code of a module's one function, and the number of its constants."""
    n_names, at = read_uint(mpy, 4)
    n_objects, at = read_uint(mpy, at)
    for _ in range(n_names):
        length, at = read_uint(mpy, at)
        at += 0 if length & 1 else (length >> 1) + 1
    for _ in range(n_objects):
        if mpy[at] != _FUN_TABLE:
            raise ValueError(f"expected the table of functions alone as a constant, got type {mpy[at]}")
        at += 1
    kind_length, at = read_uint(mpy, at)
    if kind_length & 3 != _BYTECODE or not kind_length & 4:
        raise ValueError("expected a module of bytecode with one function")
    at += kind_length >> 3
    _, at = read_uint(mpy, at)
    kind_length, at = read_uint(mpy, at)
    return mpy[at : at + (kind_length >> 3)], n_objects


class Image:
    """Memory at ``IMAGE_AT``."""

    def __init__(self) -> None:
        self.data = bytearray()

    def put(self, data: bytes) -> int:
        """The address of ``data``, aligned to 16 bytes."""
        self.data += bytes(-len(self.data) % 16)
        address = IMAGE_AT + len(self.data)
        self.data += data
        return address

    def words(self, *values: int) -> int:
        return self.put(struct.pack(f"<{len(values)}I", *(value & 0xFFFF_FFFF for value in values)))


class Recorder:
    """The calls of one inference of a compiled encoder, as ``ViperModel.encode`` makes them."""

    def __init__(self, compiled: bytes) -> None:
        self._compiled = compiled
        header = struct.unpack_from(HEADER, compiled)
        self._n_layers, arena, _, sums, _ = header[3:8]
        self._input, self._input_bytes, self._output, self.latent_bytes, _ = header[8:]
        self.image = Image()
        # Layers and blocks are read where they lie.
        self._file = self.image.put(compiled)
        self._arena = self.image.put(bytes(arena))
        self._sums = self.image.put(bytes(sums))
        self.latent = self.image.put(bytes(self.latent_bytes))
        table = self.image.words(*[TEXT_AT + IDENTITY] * FUNCTIONS)
        self._functions: dict[str, tuple[int, int]] = {}
        for name in kernels.NAMES:
            code, n_objects = native_code(
                cross.compile_module(f"{name}.py", kernels.text_of(name).encode(), PROCESSOR)
            )
            start = self.image.put(code)
            constants = self.image.words(*[table] * n_objects)
            # A module's context: type, globals, names, constants. A function: type, context, children, code.
            context = self.image.words(0, 0, 0, constants)
            self._functions[name] = (start, self.image.words(0, context, 0, start))
        self.calls: list[bytes] = []

    def _call(self, name: str, *arguments: int) -> None:
        start, function = self._functions[name]
        words = [start, function, len(arguments), 0, *arguments]
        words += [0] * (CALL_BYTES // 4 - len(words))
        self.calls.append(struct.pack(f"<{len(words)}I", *words))

    def set_input(self, codes: bytes) -> None:
        at = self._arena - IMAGE_AT + self._input
        self.image.data[at : at + self._input_bytes] = codes

    def record(self) -> None:
        self._call("flip", self._input_bytes, 0, self._arena, self._input, self._arena, self._input)
        at = HEADER_BYTES + 4 * len(FIELDS) * self._n_layers
        for number in range(self._n_layers):
            place = HEADER_BYTES + 4 * len(FIELDS) * number
            values = struct.unpack_from(f"<{len(FIELDS)}i", self._compiled, place)
            layer = dict(zip(FIELDS, values, strict=True))
            record = self._file + place
            taps = layer["kernel_height"] * layer["kernel_width"]
            if layer["operator"] == CONVOLUTION:
                channel = 0
                for n in (24, 32, 40):
                    for _ in range(layer[f"blocks_{n}"]):
                        at = self._block(
                            f"convolve_{n}", layer, record, at, taps * layer["in_channels"], n, channel
                        )
                        channel += n
            elif layer["operator"] == DEPTHWISE:
                at = self._block("depthwise", layer, record, at, taps, layer["out_channels"], 0)
            else:
                assert layer["operator"] == ADDITION
                self._call("add", 0, 0, self._arena, self._file + at, record)
                at += 2048
        self._call("flip", self.latent_bytes, 0, self._arena, self._output, self.latent, 0)

    def _block(
        self, name: str, layer: dict[str, int], record: int, at: int, taps: int, n: int, channel: int
    ) -> int:
        factors, weights = self._file + at, self._file + at + 16 * n
        channels = layer["out_channels"]
        count = min(n, channels - channel)
        start = layer["target"] + channel
        second = self._arena if name == "depthwise" else 0
        for row in range(layer["out_height"]):
            self._call(name, weights, second, weights, self._arena, self._sums, record, row)
            self._call("requantise", 0, 0, self._sums, factors, self._arena, record, start, n, count)
            start += layer["out_width"] * channels
        return at + 16 * n + taps * n


def _executable(text: bytes, entry: int) -> bytes:
    """An ELF file of one part that can be read, written and run."""
    page = 0x1000
    head = b"\x7fELF\1\1\1".ljust(16, b"\0")
    head += struct.pack("<HHIIIIIHHHHHH", 2, 94, 1, entry, 52, 0, 0, 52, 32, 1, 40, 0, 0)
    head += struct.pack("<8I", 1, page, TEXT_AT, TEXT_AT, len(text), len(text), 7, page)
    return head.ljust(page, b"\0") + text


def run(recorder: Recorder, folder: Path) -> bytes:
    """The latent that the emulated processor computes."""
    image = Image()
    image.data = bytearray(recorder.image.data)
    calls = image.put(b"".join(recorder.calls))
    (folder / "image").write_bytes(image.data)
    (folder / "program.s").write_text(
        PROGRAM.format(
            calls=calls,
            calls_end=calls + CALL_BYTES * len(recorder.calls),
            call_bytes=CALL_BYTES,
            latent=recorder.latent,
            latent_bytes=recorder.latent_bytes,
            identity=IDENTITY,
            image=IMAGE_AT - TEXT_AT,
        )
    )
    for command in (
        ["xtensa-lx106-elf-as", "--text-section-literals", "-o", "program.o", "program.s"],
        ["xtensa-lx106-elf-ld", f"-Ttext={TEXT_AT:#x}", "-o", "linked", "program.o"],
        ["xtensa-lx106-elf-objcopy", "-O", "binary", "-j", ".text", "linked", "text"],
    ):
        subprocess.run(command, cwd=folder, check=True)
    (entry,) = struct.unpack_from("<I", (folder / "linked").read_bytes(), 24)
    (folder / "program").write_bytes(_executable((folder / "text").read_bytes(), entry))
    (folder / "program").chmod(0o755)
    done = subprocess.run(["qemu-xtensa-static", "-cpu", CPU, "program"], cwd=folder, capture_output=True)
    if done.returncode:
        raise SystemExit(f"error: {done.stderr.decode()[-400:]} (code {done.returncode})")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    zoo = sorted(path for path in DEFAULT_MODEL.parent.iterdir() if (path / "bundle").is_dir())
    parser.add_argument(
        "--model", type=Path, action="append", help="folder with bundle/; without, all released"
    )
    parser.add_argument("--inputs", type=int, default=100)
    given = parser.parse_args()
    differing = 0
    for model in given.model or zoo:
        bundle = load_bundle(model / "bundle")
        encoder, codes = bundle.encoder_path.read_bytes(), codes_of(bundle)[: given.inputs]
        recorder = Recorder(compile_encoder(encoder, codes[:1]))
        recorder.record()
        with tempfile.TemporaryDirectory() as name:
            latents = []
            for one in codes:
                recorder.set_input(one.tobytes())
                latents.append(np.frombuffer(run(recorder, Path(name)), np.int8))
        expected = reference_latents(encoder, codes)
        wrong = int(np.count_nonzero(np.stack(latents) != expected))
        print(f"{model.name:16} {len(codes)} inputs, {wrong} of {expected.size:,} values differ")
        differing += wrong
    print(differing)


if __name__ == "__main__":
    main()
