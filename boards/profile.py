"""Read board profiles from ``boards/profiles/*.toml``; every figure names its source."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from boards.errors import BoardsError
from boards.fit.graph import ALLOWED_OPERATORS
from boards.sizes import format_size, parse_size
from firmware_py.runtime.toml_keys import unknown_key

PROFILE_FOLDER = Path(__file__).parent / "profiles"

SizeBytes = Annotated[int, BeforeValidator(parse_size)]
Source = Annotated[str, Field(min_length=3, description="title of the datasheet or documentation page")]
UsbId = Annotated[
    str, Field(pattern=r"^[0-9a-f]{4}:[0-9a-f]{4}$", description="vendor:product, lower-case hex")
]


class BoardError(BoardsError, ValueError):
    """A board profile is missing, incomplete or wrong."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Figure(_Strict):
    """A size in bytes and where it is written."""

    size: SizeBytes
    source: Source
    note: str = ""


class Operators(_Strict):
    """Which of the project's operators the board's runtime has in int8."""

    names: Annotated[tuple[str, ...], Field(min_length=1)]
    source: Source

    @field_validator("names")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = sorted(set(names) - ALLOWED_OPERATORS)
        if unknown:
            raise ValueError(
                f"expected operators of the project's list ({', '.join(sorted(ALLOWED_OPERATORS))}), "
                f"got {unknown}"
            )
        return names


class Kernels(_Strict):
    """Kernel library of the board's TFLite-Micro, which determines the scratch buffers in its arena."""

    name: Literal["reference", "cmsis-nn", "esp-nn"]
    source: Source


class Compiler(_Strict):
    """Compiler of the board's accelerator, and its command-line options."""

    name: Literal["vela", "edgetpu_compiler"]
    options: tuple[str, ...] = ()
    source: Source


class Firmware(_Strict):
    """Firmware that the board runs, and its least version: an older one cannot load or compute the model."""

    name: Literal["MicroPython", "OpenMV"]
    minimum: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    source: Source


class Heap(_Strict):
    """Blocks of MicroPython's heap, from which OpenMV's ``ml`` takes arena and model; neither may span two of them."""

    blocks: Annotated[tuple[SizeBytes, ...], Field(min_length=1)]
    source: Source


class Inference(_Strict):
    """Estimated time of one inference of epic-small-128, in s, and how it was estimated."""

    seconds: Annotated[float, Field(gt=0)]
    source: Source


class Ports(_Strict):
    """Serial ports that the board's firmware can open.

    ``uarts`` maps the name that ``machine.UART`` takes to its pins, ``refused`` to what is wired there instead. ``usb``
    is True where a second USB serial port is possible (``pyb.USB_VCP(1)``), ``pins`` where TX and RX have to be named.
    """

    uarts: dict[str, str]
    refused: dict[str, str] = {}
    pins: bool = False
    usb: bool = False
    source: Source


class Links(_Strict):
    """Links by which the board can reach the centre."""

    kinds: Annotated[
        tuple[Literal["ethernet", "wifi", "usb-serial", "uart", "host"], ...], Field(min_length=1)
    ]
    source: Source


class Measured(_Strict):
    """A figure of a published benchmark."""

    value: Annotated[float, Field(gt=0)]
    source: Source
    note: str = ""

    @property
    def said(self) -> str:
        return f"{self.source} ({self.note})" if self.note else self.source


class Speed(_Strict):
    """Speed of one of the board's cores.

    ``network`` is the time of one inference of MobileNet v1 1.0 (224 x 224) in int8 on XNNPACK, in ms. ``code`` is the
    rating of 7-zip's benchmark in MIPS. ``power`` is the additional power while busy, in W above the idle board.
    """

    network: Measured
    code: Measured
    power: Measured


class Install(_Strict):
    """Way to install firmware and a bundle on the board.

    ``by`` is the method of `epic board install`; a board installed by hand has only ``how``. ``machines`` lists the
    possible results of `uname -m`. ``says_it_is`` is the start of /proc/device-tree/model.
    """

    method: Literal[
        "pip", "edgetpu-runtime", "dfu-util", "blhost", "esptool", "flashtool", "fvp", "uf2", "teensy-loader"
    ]
    by: Literal["ssh", "mpremote", "hand"]
    machines: tuple[Literal["aarch64", "x86_64"], ...] = ()
    says_it_is: str = ""
    how: Annotated[str, Field(min_length=10)]
    source: Source


class SpoolPlace(_Strict):
    """Where a microcontroller keeps its spool, unless its flash has a partition named spool; a file without this entry.

    ``littlefs`` is the file system of the firmware. ``flash`` is the range of ``start`` and ``bytes`` of its raw flash,
    which no file system uses.
    """

    kind: Literal["littlefs", "flash"]
    start: SizeBytes = 0
    bytes: SizeBytes = 0
    source: Source

    @model_validator(mode="after")
    def _range(self) -> SpoolPlace:
        if (self.kind == "flash") != (self.bytes > 0):
            raise ValueError(
                f"expected bytes of kind flash and of no other, got kind {self.kind!r} with {self.bytes} bytes"
            )
        return self


class Usb(_Strict):
    """An identity under which the board shows up on USB."""

    id: UsbId
    when: str
    source: Source


class Board(_Strict):
    """One board. Sizes are bytes.

    ``arena_limit`` bounds the tensor arena and ``model_limit`` the encoder's file; either may be
    the project's own rule rather than a property of the chip, and then its source says so.
    ``flash`` is where the model lies, a card or DDR where the board has no flash of its own.
    ``runtime`` viper is stock MicroPython's native code (``boards/fit/epicnn.py``); its ``arena_limit`` is heap. ``ml``
    is OpenMV's module (TFLite-Micro); its ``arena_limit`` is the largest block of ``heap``. tflite-micro is C code of
    the user's own.
    ``status`` is honest about what was tried: "verified" by a run on such a machine, "verified in
    emulation", or only "documented"; ``status_note`` says what was run.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    title: str
    kind: Literal["linux", "microcontroller"]
    processor: str
    runtime: Literal[
        "litert", "tflite-runtime-edgetpu", "ml", "viper", "tflite-micro", "tflite-micro-edgetpu", "ethos-u"
    ]
    status: Literal["verified", "verified in emulation", "documented"]
    status_note: Annotated[str, Field(min_length=10)]
    memory: Figure
    flash: Figure
    arena_limit: Figure
    model_limit: Figure
    operators: Operators
    kernels: Kernels | None = None
    compiler: Compiler | None = None
    firmware: Firmware | None = None
    heap: Heap | None = None
    inference: Inference | None = None
    ports: Ports | None = None
    links: Links
    speed: Speed | None = None
    install: Install
    spool: SpoolPlace | None = None
    usb: tuple[Usb, ...] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> Board:
        for limit, place in (("arena_limit", "memory"), ("model_limit", "flash")):
            allowed, there = getattr(self, limit).size, getattr(self, place).size
            if allowed > there:
                raise ValueError(
                    f"{limit}: expected at most the {format_size(there)} of {place}, got {format_size(allowed)}"
                )
        needed = {"ethos-u": "vela"}.get(
            self.runtime, "edgetpu_compiler" if "edgetpu" in self.runtime else None
        )
        if needed != (self.compiler.name if self.compiler else None):
            raise ValueError(
                f"compiler: expected {needed!r} for the runtime {self.runtime!r}, got {self.compiler}"
            )
        for entry, runtimes in (
            ("kernels", ("ml", "tflite-micro")),
            ("heap", ("ml",)),
            ("firmware", ("ml", "viper")),
            ("inference", ("ml", "viper")),
            ("ports", ("ml", "viper")),
        ):
            there = getattr(self, entry)
            if (there is not None) != (self.runtime in runtimes):
                raise ValueError(
                    f"{entry}: expected of the runtimes {' and '.join(map(repr, runtimes))} and of no other, got "
                    f"{there} for {self.runtime!r}"
                )
        if self.heap is not None and self.arena_limit.size != max(self.heap.blocks):
            raise ValueError(
                f"arena_limit: expected the largest block of heap, {format_size(max(self.heap.blocks))}, got "
                f"{format_size(self.arena_limit.size)}"
            )
        if self.ports is not None and (both := set(self.ports.uarts) & set(self.ports.refused)):
            raise ValueError(f"ports: expected either uarts or refused, got {sorted(both)} in both")
        return self

    @property
    def served_by(self) -> str:
        """Return the command that installs a device on the board."""
        by = {"ssh": "epic board install --host", "mpremote": "epic board install --port"}
        return by.get(self.install.by, "by hand")


def board_names(folder: Path = PROFILE_FOLDER) -> tuple[str, ...]:
    """Names of all profiles, sorted."""
    return tuple(sorted(path.stem for path in folder.glob("*.toml")))


def load_board(name: str, folder: Path = PROFILE_FOLDER) -> Board:
    """The profile ``folder/name.toml``, or that of a path to a file FILE.toml.

    Raises ``BoardError`` for an unknown name, a file that is no TOML, or a wrong or missing entry.
    """
    known = board_names(folder)
    path = folder / f"{name}.toml"
    if name.endswith(".toml"):
        path = Path(name)
        name = path.stem
        if not path.is_file():
            raise BoardError(
                f"{path}: expected a board profile, found no file; begin with a copy of one in {folder}"
            )
    elif name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known) or 'none'}"
        raise BoardError(f"no board {name!r}; {hint}")
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BoardError(f"{path}: expected TOML, got {error}") from error
    try:
        board = Board.model_validate(values)
    except ValidationError as error:
        raise BoardError(f"{path}: {_first_problem(error, text)}") from error
    if board.name != name:
        raise BoardError(f"{path}: expected name = {name!r} as the file is called, got {board.name!r}")
    return board


def _first_problem(error: ValidationError, text: str) -> str:
    problems: list[Any] = list(error.errors())
    # A misspelt entry before the one that is missing for it.
    problem = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        model: Any = Board
        for part in problem["loc"][:-1]:
            if not isinstance(part, int):
                model = _inner_model(model.model_fields[part].annotation)
        section = ".".join(str(part) for part in problem["loc"][:-1] if not isinstance(part, int))
        return unknown_key(text, section, str(problem["loc"][-1]), model.model_fields)
    if problem["type"] == "missing":
        return f"entry {where!r} is missing; add it"
    message = problem["msg"].removeprefix("Value error, ")
    given = "" if "got" in message else f", got {problem['input']!r}"
    where = f"{where}: " if where else ""
    return f"{where}{message[0].lower()}{message[1:]}{given}"


def _inner_model(annotation: Any) -> Any:
    """The profile class inside ``Figure``, ``Figure | None`` or ``tuple[Usb, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _inner_model(inner)
        if found is not None:
            return found
    return None
