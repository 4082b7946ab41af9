"""Install a device on a microcontroller with MicroPython; only files with a different hash are copied, `main.py` last.

It gathers facts, makes a plan, and carries out the steps in order. The first step removes main.py and restarts the
board, so that nothing runs there meanwhile. Even the watchdog is then off, which cannot be stopped otherwise. After an
interruption the board waits at its prompt, and the next run continues.
"""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import firmware_py
from boards.fit.budget import VIPER_PROGRAM_BYTES
from boards.fit.epicnn import EpicnnError, compile_encoder, read_memory
from boards.install.linux.contents import described, digest_of
from boards.install.linux.install import Step, check_fit
from boards.install.linux.shell import InstallError
from boards.install.micropython import cross
from boards.install.micropython.console import usb_id
from boards.install.micropython.mpremote import Prompt
from boards.install.settings import Settings, key_files
from boards.profile import Board, board_names, load_board
from boards.sizes import format_size
from firmware_py.inference.bundle import ENCODER, EPICNN, MANIFEST, Bundle, load_bundle
from firmware_py.inference.self_test import read_vectors
from firmware_py.micropython.boot_counter import FORMER
from firmware_py.micropython.config import ConfigError, load_config
from firmware_py.micropython.padding import BLOCK_BYTES, end_of
from firmware_py.micropython.slots import NOTE_BYTES, OFFER
from firmware_py.micropython.store import SEGMENT_SLOTS, SLOT_BYTES

ROOM = Path(firmware_py.__file__).parent
# Files of the device's code needed besides firmware_py/micropython.
SHARED = (
    "__init__.py",
    "errors.py",
    "protocol/__init__.py",
    "protocol/packet.py",
    "protocol/frame_authenticator.py",
)
MAIN = "main.py"
# Name under which a foreign main.py is kept until uninstallation.
KEPT = "main.py.before"
INSTALLED = "installed.json"
SPOOL_RECORDS = 256
# Label of an ESP32's partition for the spool.
PARTITION = "spool"
SPOOL_FILE, SPOOL_FOLDER = "spool/records", "spool"
# Distance of a spool file's slots in bytes: an erase block, so that a torn one holds no second slot.
SPOOL_STRIDE = 4096
# Spool of installations before 2026-12; it stays in place.
FORMER_SPOOL = "spool.bin"
# Files that the device writes itself, and their folder.
SPOOL_FILES = (
    FORMER_SPOOL,
    f"{FORMER_SPOOL}.starts",
    *(f"{SPOOL_FILE}{end}" for end in ("", ".starts", ".pad")),
    *(f"{SPOOL_FOLDER}/{block}" for block in range(SPOOL_RECORDS // SEGMENT_SLOTS + 1)),
    SPOOL_FOLDER,
)
SPARE_BYTES = 16 << 10
# Answers of the board with more hashes need too large a block of its heap.
HASHES_AT_ONCE = 32
# Second copies of all files, and the SHA-256 of each, which restore.py compares at every start. The bundle's copy lies
# in the slot of the first update.
COPIES, BUNDLE, SPARE = "copy/", "bundle/", "bundle.b/"
SUMS = "sums"
# Files that updates over the link leave: the second slot, and the record of the slot in use.
SIGNING_KEY = "signing.public"
SLOTS = ("slots.0", "slots.1")
SECOND_SLOT = tuple(f"{SPARE}{name}" for name in (OFFER, MANIFEST, ENCODER, EPICNN))
# Preallocated size of a bundle's file on FAT: a quarter more than its content, at least 16 KiB more.
SLOT_ROOM, SLOT_ROOM_BYTES = 1.25, 16 << 10
BLANK_NOTE = b" " * NOTE_BYTES


@dataclass(frozen=True)
class McuInstallRequest:
    """Request for an installation.

    Recordings come from ``digitiser``, a module that is copied to the board, or from the file ``settings.replay`` on
    it, whose counts are worth ``step``. ``ssid`` and ``password`` are the Wi-Fi's, for an endpoint HOST:PORT. With
    ``replace``, a foreign main.py is kept as main.py.before.
    """

    board: Board
    bundle: Path
    settings: Settings
    digitiser: Path | None = None
    step: float = 0.0
    ssid: str = ""
    password: str = field(default="", repr=False)
    replace: bool = False


@dataclass(frozen=True)
class McuPlan:
    """Steps of an installation, and ``notes`` for the operator."""

    facts: dict[str, Any]
    steps: tuple[Step, ...]
    notes: tuple[str, ...]


def contents(
    order: McuInstallRequest,
    runtime: bool = True,
    spool: dict[str, Any] | None = None,
    processor: str = "",
    copies: bool = True,
) -> dict[str, bytes]:
    """Return every file of an installation by its path on the board, in the order of copying. Raises ``InstallError``.

    Firmware with a TFLite ``runtime`` gets the encoder for it; all get the one compiled for viper, if that can be done.
    ``spool`` is the section of ``device.json``. Modules are compiled; the kernels to native code of ``processor``, if
    the firmware takes it. With ``copies``, there is a second one of every file.
    """
    files = program(processor)
    bundle = load_bundle(order.bundle)
    groups = len(bundle.manifest["acquisition"]["device_receivers"])
    if order.settings.device >= groups:
        raise InstallError(
            f"{order.bundle}: made for devices 0 to {groups - 1}, this is device {order.settings.device}; "
            "correct --device"
        )
    for name in (MANIFEST, ENCODER) if runtime else (MANIFEST,):
        files[f"bundle/{name}"] = (order.bundle / name).read_bytes()
    try:
        files[f"bundle/{EPICNN}"] = _compiled(bundle)
    except EpicnnError as error:
        if not runtime:
            raise InstallError(
                f"{order.bundle}: {error}; or put firmware with the module ml on the board"
            ) from None
    in_place = bool(order.settings.signing_key) and order.board.spool is None
    if in_place:
        files |= {path: _padded(data) for path, data in files.items() if path.startswith(BUNDLE)}
    for key in key_files(order.settings):
        files[Path(key.path).name] = key.content
    if order.digitiser:
        path, module = _digitiser(order.digitiser, files, processor)
        files[path] = module
    files["device.json"] = device_json(order, spool or spool_section(order.board)).encode()
    main = (ROOM / "micropython" / MAIN).read_bytes()
    compared = {**files, MAIN: main}
    second = {path: _copy_of(path) for path in compared} if copies else {}
    sums = _sums(compared, second)
    files |= {copy: compared[path] for path, copy in second.items()}
    if in_place:
        files = _with_slots(files)
    files |= {SUMS: sums, **({f"{COPIES}{SUMS}": sums} if copies else {})}
    files[INSTALLED] = _record(order, files)
    files[MAIN] = main
    return files


def _padded(data: bytes) -> bytes:
    """Return a preallocated bundle file: content, spare room, the content's length, and an empty erase block."""
    room = max(int(len(data) * SLOT_ROOM), len(data) + SLOT_ROOM_BYTES)
    room += -room % BLOCK_BYTES
    return data + bytes(room - len(data)) + end_of(len(data)).ljust(2 * BLOCK_BYTES, b"\0")


def _with_slots(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return ``files`` and the preallocated ones of both slots, with the files of a slot next to each other."""
    first = {path: data for path, data in files.items() if path.startswith(BUNDLE)}
    second = {f"{SPARE}{path.removeprefix(BUNDLE)}": data for path, data in first.items()}
    return {
        **{path: data for path, data in files.items() if path not in first and path not in second},
        **dict.fromkeys(SLOTS, BLANK_NOTE),
        **{f"{BUNDLE}{OFFER}": BLANK_NOTE, **first},
        **{f"{SPARE}{OFFER}": BLANK_NOTE, **second},
    }


def _is_updated(found: dict[str, str | None]) -> bool:
    """Return True if the hashes show that the board has installed an update."""
    return any(found[path] not in (None, digest_of(BLANK_NOTE)) for path in SLOTS)


def _copy_of(path: str) -> str:
    """Return the path of a file's second copy."""
    return f"{SPARE}{path.removeprefix(BUNDLE)}" if path.startswith(BUNDLE) else f"{COPIES}{path}"


def _sums(files: dict[str, bytes], second: dict[str, str]) -> bytes:
    """Return the content of ``sums`` for restore.py: a line a file with its SHA-256, its path and its copy's path."""
    lines = "".join(f"{digest_of(data)} {path} {second.get(path, '-')}\n" for path, data in files.items())
    return f"{digest_of(lines.encode())}\n{lines}".encode()


def program(processor: str) -> dict[str, bytes]:
    """Return the device's compiled modules by their paths on the board. Raises ``InstallError``."""
    paths = [*(ROOM / name for name in SHARED), *sorted(ROOM.glob("micropython/*.py"))]
    files = {}
    for path in paths:
        if path.name != MAIN:
            name = f"{ROOM.name}/{path.relative_to(ROOM)}"
            files[f"{name.removesuffix('.py')}.mpy"] = cross.compile_module(name, path.read_bytes())
    return files | (cross.native_kernels(processor) if processor else {})


def _compiled(bundle: Bundle) -> bytes:
    """The encoder for viper: the bundle's own, or made from its encoder. Raises ``EpicnnError``."""
    if EPICNN in bundle.manifest["files"]:
        return (bundle.folder / EPICNN).read_bytes()
    vectors = read_vectors(bundle)
    return compile_encoder(bundle.encoder_path.read_bytes(), vectors[0][:1] if vectors else None)


def spool_section(
    board: Board, partition: bool = False, former: bool = False, dense: bool = False
) -> dict[str, Any]:
    """Section ``spool`` of ``device.json``.

    Args:
        partition: The board's flash has a data partition named spool.
        former: The board has a spool of an earlier installation, whose records must not be left behind.
        dense: A spool file has no erase block for each slot, since the flash lacks the room or the file is there.
    """
    if former:
        return {"kind": "file", "path": FORMER_SPOOL, "records": SPOOL_RECORDS}
    if partition:
        return {"kind": "flash", "path": PARTITION}
    if board.spool is None:
        stride = SLOT_BYTES if dense else SPOOL_STRIDE
        return {"kind": "file", "path": SPOOL_FILE, "records": SPOOL_RECORDS, "stride": stride}
    if board.spool.kind == "flash":
        return {"kind": "flash", "start": board.spool.start, "bytes": board.spool.bytes}
    return {"kind": "littlefs", "path": SPOOL_FOLDER, "records": SPOOL_RECORDS}


def spool_cost(section: dict[str, Any]) -> str:
    """Describe the cost of the spool's place for the operator."""
    if section.get("path") == FORMER_SPOOL:
        return (
            f"spool: stays in {FORMER_SPOOL}, where records may wait, beside the program; once none does, uninstall "
            "with --purge and install again, for a place that wears less"
        )
    if section["kind"] == "flash":
        return (
            "spool: raw flash of its own; a power cut loses nothing that was stored, one erasure for 8 records of "
            "512 bytes, all blocks wear alike"
        )
    if section["kind"] == "littlefs":
        return (
            "spool: littlefs beside the program; a power cut loses nothing that was stored, 1.3 erasures a record, "
            "spread over the free blocks"
        )
    lost = "loses nothing that was stored"
    if section["stride"] < SPOOL_STRIDE:
        lost = "may lose the 8 stored ones of its erase block"
    return (
        f"spool: a file beside the program, since the board has no better place; a power cut while a record is "
        f"written {lost}, and each record costs one erasure. An SD card wears less: docs/guides/microcontroller.md"
    )


def device_json(order: McuInstallRequest, spool: dict[str, Any]) -> str:
    """The device's configuration, valid by the device's own check. Raises ``InstallError``."""
    settings = order.settings
    if len(settings.replay) + bool(order.digitiser) != 1:
        raise InstallError("recordings: expected either --digitiser FILE.py or one --replay FILE with --step")
    if order.digitiser:
        source: dict[str, Any] = {"kind": "module", "name": order.digitiser.stem}
    else:
        if not order.step > 0:
            raise InstallError("--replay: expected what one count is worth, above 0: --step")
        source = {"kind": "replay", "path": settings.replay[0], "step": order.step}
    config = {
        "device": settings.device,
        "survey": settings.survey,
        "board": order.board.name,
        "secret": f"{settings.name}.mac",
        "link": _link(order),
        "source": source,
        "spool": spool,
    }
    if settings.signing_key:
        config["update"] = {"key": SIGNING_KEY}
    text = json.dumps(config) + "\n"
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "device.json"
        path.write_text(text, encoding="utf-8")
        try:
            load_config(str(path))
        except ConfigError as error:
            raise InstallError(str(error).removeprefix(f"{path}: ")) from None
    return text


def _link(order: McuInstallRequest) -> dict[str, Any]:
    """Section ``link`` of ``device.json``. Raises ``InstallError``."""
    endpoint, board = order.settings.endpoint, order.board
    line = re.fullmatch(r"(uart|usb):(\w+)(?::(\w+):(\w+))?", endpoint)
    if not line and order.settings.kind == "tcp":
        return {"kind": "tcp", "endpoint": endpoint, "ssid": order.ssid, "password": order.password}
    if not line:
        raise InstallError(
            f"endpoint: {board.title} sends to a gateway; expected uart:N, usb:N or HOST:PORT, got {endpoint!r}"
        )
    if order.ssid:
        raise InstallError(
            f"--ssid: expected with an endpoint HOST:PORT, got {endpoint}; leave one of them out"
        )
    kind, port, tx, rx = line.groups()
    assert board.ports is not None, "a board that is installed over its prompt has ports"
    if kind == "usb":
        if endpoint == "usb:0":
            raise InstallError(
                "endpoint: usb:0 is the board's prompt, over which it is installed; records need a port of their "
                "own: usb:1 or a uart"
            )
        if endpoint != "usb:1" or not board.ports.usb:
            raise InstallError(
                f"endpoint: {board.title} has {'usb:1' if board.ports.usb else 'no second USB port'}, got "
                f"{endpoint}; its UARTs are {_uarts(board)}"
            )
        return {"kind": "usb", "port": 1}
    if port in board.ports.refused:
        raise InstallError(
            f"endpoint: uart:{port} of {board.title} is wired to something else: {board.ports.refused[port]}; "
            f"take {_uarts(board)}"
        )
    if port not in board.ports.uarts:
        raise InstallError(f"endpoint: {board.title} has no uart:{port}; it has {_uarts(board)}")
    if board.ports.pins and not tx:
        raise InstallError(
            f"endpoint: the UARTs of {board.title} have no pins of their own; expected uart:{port}:TX:RX, such as "
            f"uart:{port}:17:18"
        )
    pins = {"tx": tx, "rx": rx} if tx else {}
    return {
        "kind": "uart",
        "port": int(port) if port.isdigit() else port,
        **pins,
        "baud": order.settings.baud,
    }


def _uarts(board: Board) -> str:
    assert board.ports is not None
    return ", ".join(f"uart:{name} ({pins})" for name, pins in board.ports.uarts.items())


def make_plan(prompt: Prompt, order: McuInstallRequest) -> McuPlan:
    """Return the plan of an installation; interrupts the running device.

    Raises:
        InstallError: The installation is impossible.
    """
    check_fit(order.bundle, order.board, ("heap",))
    # Refuse a wrong request before the device is interrupted.
    contents(order)
    facts = _facts(prompt)
    check_identity(prompt.port, order.board, facts)
    _check_owner(prompt.port, order.settings, facts)
    former = FORMER_SPOOL in facts["spool"]
    dense = facts["spool_bytes"] == SPOOL_RECORDS * SLOT_BYTES
    spool = spool_section(order.board, facts["partition"], former, dense)
    runtime = has_runtime(prompt.port, order.board, facts)
    if not runtime and not facts["viper"]:
        raise InstallError(
            f"{prompt.port}: {facts['machine'] or 'the board'} has MicroPython {facts['version']} with neither the "
            f"module ml nor native code (viper); put other firmware on it: {order.board.install.how}"
        )
    processor = cross.processor_of(facts["mpy"])
    files = contents(order, runtime, spool, processor)
    if not runtime:
        _check_heap(prompt.port, files[f"bundle/{EPICNN}"], facts)
    found = _facts(prompt, (*files, *SLOTS))["files"]
    foreign = _is_foreign(facts, files[MAIN])
    if foreign and not order.replace:
        raise InstallError(
            f"{prompt.port}: {MAIN} there is not EPIC's; --replace keeps it as {KEPT}, and uninstalling puts it back"
        )
    free_bytes = facts["free_bytes"]
    needed_bytes = _needed_bytes(order, files, found, spool, facts)
    notes: tuple[str, ...] = ()
    if free_bytes is not None and free_bytes < needed_bytes and facts["spool_bytes"] is None:
        spool = spool_section(order.board, facts["partition"], former, dense=True)
        files = contents(order, runtime, spool, processor)
        needed_bytes = _needed_bytes(order, files, found, spool, facts)
    if free_bytes is not None and free_bytes < needed_bytes:
        notes = (f"second copies: none, they need {format_size(needed_bytes - free_bytes)} more of flash",)
        files = contents(order, runtime, spool, processor, copies=False)
        needed_bytes = _needed_bytes(order, files, found, spool, facts)
        if free_bytes < needed_bytes:
            raise InstallError(
                f"{prompt.port}: {facts['folder']}: needs {format_size(needed_bytes)} free, there are "
                f"{format_size(free_bytes)}; make room, or put an SD card in"
            )
    notes = (spool_cost(spool), *notes, *_name_note(order.settings.endpoint))
    changed = _changed(files, found)
    stale = [path for path in (facts["installed"] or {}).get("paths", ()) if path not in files]
    if not changed and not stale:
        return McuPlan(facts, (), notes)

    return McuPlan(facts, _steps(prompt, files, changed, stale, foreign, bool(found[MAIN])), notes)


def _name_note(endpoint: str) -> tuple[str, ...]:
    """Say what a gateway's name costs: MicroPython waits for the name server, and nothing feeds the watchdog."""
    host = endpoint.rpartition(":")[0]
    if endpoint.startswith(("uart:", "usb:")) or re.fullmatch(r"[\d.]+|\[[0-9a-fA-F:]+\]", host):
        return ()
    return (
        f"endpoint: {host} is a name; while no name server answers, the watchdog restarts the board; give the "
        "gateway's address as a number",
    )


def _steps(
    prompt: Prompt,
    files: dict[str, bytes],
    changed: dict[str, bytes],
    stale: list[str],
    foreign: bool,
    runs: bool,
) -> tuple[Step, ...]:
    """Return the steps of an installation: copy the changed files, then check all files.

    ``foreign`` means that the board's main.py is another program's, ``runs`` that it is EPIC's.
    """
    steps = []
    if foreign:
        steps.append(Step(f"stop what runs there, keep {MAIN} as {KEPT}", lambda: _stop(prompt, keep=True)))
    elif runs:
        steps.append(Step("stop what runs there", lambda: _stop(prompt)))
    to_copy = {path: data for path, data in changed.items() if path != MAIN}
    if to_copy:
        size = format_size(sum(len(data) for data in to_copy.values()))
        steps.append(Step(f"copy {len(to_copy)} files, {size}", lambda: _copy(prompt, to_copy)))
    if any(path.startswith(BUNDLE) for path in changed) and not any(path in files for path in SLOTS):
        # The bundle of this installation is the one in use, whatever an update brought.
        steps.append(Step("forget former updates", lambda: _remove(prompt, list(SLOTS))))
    if stale:
        steps.append(Step(f"remove {', '.join(stale)}", lambda: _remove(prompt, stale)))
    rest = {
        path: data for path, data in files.items() if path in changed or not path.startswith((SPARE, *SLOTS))
    }
    rest.pop(MAIN)
    steps.append(Step("read all back and compare", lambda: _verify(prompt, rest)))
    steps.append(Step("try port and model there", lambda: try_model(prompt)))
    steps.append(Step("set the clock, put main.py in place", lambda: _finish(prompt, files[MAIN])))
    return tuple(steps)


def _changed(files: dict[str, bytes], found: dict[str, str | None]) -> dict[str, bytes]:
    """Return the files that differ from those on the board, without the spare slot if an update may be in it."""
    changed = {path: data for path, data in files.items() if found[path] != digest_of(data)}
    if _is_updated(found) and not any(path.startswith(BUNDLE) for path in changed):
        return {path: data for path, data in changed.items() if not path.startswith((SPARE, *SLOTS))}
    return changed


def _needed_bytes(
    order: McuInstallRequest,
    files: dict[str, bytes],
    found: dict[str, str | None],
    spool: dict[str, Any],
    facts: dict[str, Any],
) -> int:
    """Return the bytes of flash that installing ``files`` needs, with the spool and the slot of updates."""
    needed = sum(len(data) for data in _changed(files, found).values()) + SPARE_BYTES
    if spool["kind"] != "flash" and not facts["spool"]:
        needed += (SPOOL_RECORDS + SEGMENT_SLOTS) * spool.get("stride", SLOT_BYTES)
    if order.settings.signing_key and not any(path.startswith(SPARE) for path in files):
        needed += sum(len(data) for path, data in files.items() if path.startswith(BUNDLE))
    return needed


def check_identity(port: str, board: Board, facts: dict[str, Any]) -> None:
    """Raise ``InstallError`` if the board says that it is another one, or shows another's identity on USB."""
    said, expected = facts["machine"], board.install.says_it_is
    others = [load_board(name) for name in board_names()]
    if said:
        if expected.casefold() in said.casefold():
            return
        like = [
            other.name
            for other in others
            if other.install.by == "mpremote" and other.install.says_it_is.casefold() in said.casefold()
        ]
        found = f"it says {said!r}"
    else:
        usb = usb_id(port)
        if usb in [one.id for one in board.usb]:
            return
        like = [other.name for other in others if usb in [one.id for one in other.usb]]
        if not like:
            return
        found = f"on USB it is {usb}"
    advice = (
        f"give --board {' or '.join(like)}" if like else "give a profile of its own: --board ./my-board.toml"
    )
    raise InstallError(
        f"{port}: expected a board that says it is {expected!r} for {board.title}, {found}; {advice}"
    )


def has_runtime(port: str, board: Board, facts: dict[str, Any]) -> bool:
    """Return True if the firmware's ``ml`` can load the encoder.

    Raises:
        InstallError: The firmware is too old for the board's runtime.
    """
    if not facts["runtime"] or board.firmware is None:
        old = board.firmware is not None and _older(facts["version"], board.firmware.minimum)
        if board.runtime == "viper" and old:
            assert board.firmware is not None
            raise InstallError(
                f"{port}: expected MicroPython {board.firmware.minimum} or later, got {facts['version']}; "
                f"{board.install.how}"
            )
        return False
    if board.runtime != "ml":
        return False
    return not (facts["openmv"] and _older(facts["openmv"], board.firmware.minimum))


def _older(version: str, minimum: str) -> bool:
    found = [int(part) for part in re.findall(r"\d+", version)[:3]]
    return found < [int(part) for part in minimum.split(".")]


def _check_owner(port: str, settings: Settings, facts: dict[str, Any]) -> None:
    """Raise ``InstallError`` if the board's spool holds records of another device."""
    installed = facts["installed"] or {}
    owner = (installed.get("device"), installed.get("survey"))
    if installed and (facts["spool"] or facts["partition"]) and owner != (settings.device, settings.survey):
        raise InstallError(
            f"{port}: its spool is that of device {owner[0]}, survey {owner[1]}, this is device {settings.device}, "
            f"survey {settings.survey}; once nothing waits: epic board uninstall --port {port} --purge"
        )


def _check_heap(port: str, compiled: bytes, facts: dict[str, Any]) -> None:
    """Raise ``InstallError`` if the board's own heap is too small for native code."""
    free, buffers = facts["heap_bytes"], read_memory(compiled)
    needed = buffers.total + VIPER_PROGRAM_BYTES
    if free is not None and free < needed:
        raise InstallError(
            f"{port}: the encoder needs {format_size(needed)} of heap, the board has {format_size(free)} free; take a "
            "smaller model"
        )
    largest = facts["largest_bytes"]
    if largest is not None and largest < buffers.arena:
        raise InstallError(
            f"{port}: the encoder needs a block of {format_size(buffers.arena)}, the board's largest is "
            f"{format_size(largest)}; take a smaller model"
        )


def try_model(prompt: Prompt) -> str:
    """Open the board's port, load the model and run it once; return its time and heap in words.

    Raises:
        InstallError: The board lacks the port, or the model does not run.
    """
    found = prompt.ask("trial")
    if "no_link" in found:
        raise InstallError(
            f"{prompt.port}: the board has not the port that --endpoint names: {found['no_link']}"
        )
    if "error" in found:
        raise InstallError(f"{prompt.port}: the model does not run there: {found['error']}")
    runtime = {"MlModel": "ml", "ViperModel": "native code"}.get(found["runtime"], found["runtime"])
    return f"by {runtime}, {found['inference_ms']} ms an inference, {format_size(found['heap_bytes'])} of heap left"


def read_status(prompt: Prompt) -> dict[str, Any]:
    """Return the installation record, with ``damaged``: files that are missing or changed, and ``device_state``.

    Raises:
        InstallError: Nothing is installed.
    """
    state = prompt.ask_as_it_is("state")
    record = _facts(prompt)["installed"]
    if not record:
        raise InstallError(
            f"{prompt.port}: no EPIC device is installed there; see: epic board install --help"
        )
    expected = record["sha256"]
    found = _facts(prompt, (*expected, *SLOTS))["files"]
    updated = _is_updated(found)
    damaged = [
        path
        for path in expected
        if found[path] != expected[path] and not (updated and path.startswith((BUNDLE, SPARE, *SLOTS)))
    ]
    return {**record, "damaged": damaged, "device_state": state}


def uninstall(prompt: Prompt, purge: bool) -> list[str]:
    """Remove the device; with ``purge`` its spool and boot counter too. Returns what was removed."""
    facts = _facts(prompt)
    if not facts["installed"] and not (purge and facts["spool"]):
        raise InstallError(f"{prompt.port}: no EPIC device is installed there")
    paths = (facts["installed"] or {}).get("paths", [])
    # main.py goes first, the installation record last.
    files = [
        MAIN,
        *(path for path in paths if path not in (MAIN, INSTALLED)),
        *SLOTS,
        *SECOND_SLOT,
        *([*SPOOL_FILES, *FORMER] if purge else []),
    ]
    if facts["files"][MAIN]:
        _stop(prompt)
    if purge and facts["installed"]:
        # Raw flash has no file to remove.
        prompt.ask("wipe")
    removed = prompt.ask("remove", [*files, *reversed(_folders(files)), INSTALLED])
    prompt.ask("rename", KEPT, MAIN)
    return removed


def _facts(prompt: Prompt, paths: tuple[str, ...] = ()) -> dict[str, Any]:
    wanted = [*paths, *(() if MAIN in paths else (MAIN,))]
    files: dict[str, str | None] = {}
    while len(wanted) > HASHES_AT_ONCE:
        files |= prompt.ask("hashes", wanted[:HASHES_AT_ONCE])
        wanted = wanted[HASHES_AT_ONCE:]
    facts = prompt.ask("facts", wanted, INSTALLED, [FORMER_SPOOL, SPOOL_FOLDER], SPOOL_FILE, PARTITION)
    return {**facts, "files": {**files, **facts["files"]}}


def _is_foreign(facts: dict[str, Any], main: bytes) -> bool:
    """Return True if the board's main.py is neither the one to install nor the one installed before."""
    installed = (facts["installed"] or {}).get("sha256", {}).get(MAIN)
    return facts["files"][MAIN] not in (None, digest_of(main), installed)


def _stop(prompt: Prompt, keep: bool = False) -> None:
    prompt.take_over()
    if keep:
        prompt.ask("rename", MAIN, KEPT)
    else:
        _remove(prompt, [MAIN])
    prompt.reset()


def _remove(prompt: Prompt, paths: list[str]) -> None:
    prompt.ask("remove", paths)


def _copy(prompt: Prompt, files: dict[str, bytes]) -> None:
    if folders := _folders(files):
        prompt.ask("folders", folders)
    with tempfile.TemporaryDirectory() as name:
        sources = {}
        for number, (path, data) in enumerate(files.items()):
            sources[path] = Path(name) / str(number)
            sources[path].write_bytes(data)
        prompt.copy(sources)


def _verify(prompt: Prompt, files: dict[str, bytes]) -> None:
    found = _facts(prompt, tuple(files))["files"]
    wrong = [path for path, data in files.items() if found[path] != digest_of(data)]
    if wrong:
        raise InstallError(
            f"{prompt.port}: {wrong[0]}: read back, it is not what was written; run it again, and if that does "
            "not help the flash is bad"
        )


def _finish(prompt: Prompt, main: bytes) -> None:
    prompt.set_clock()
    _copy(prompt, {MAIN: main})
    _verify(prompt, {MAIN: main})


def _digitiser(path: Path, others: dict[str, bytes], processor: str) -> tuple[str, bytes]:
    """Return the path of the compiled digitiser on the board, and its content.

    Raises:
        InstallError: It is not a module, or would replace one of the device's own.
    """
    target = f"{path.stem}.mpy"
    if (
        path.suffix != ".py"
        or not path.stem.isidentifier()
        or path.name in (MAIN, "boot.py")
        or target in others
    ):
        raise InstallError(f"--digitiser: expected a module FILE.py of a name of its own, got {path.name}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InstallError(
            f"{path}: cannot be read ({error.strerror}); expected a module with open_source"
        ) from None
    if b"def open_source(" not in data:
        raise InstallError(f"{path}: expected a function open_source(shots, samples, receivers) in it")
    return target, cross.compile_module(path.name, data, processor)


def _record(order: McuInstallRequest, files: dict[str, bytes]) -> bytes:
    bundle = load_bundle(order.bundle)
    hashes = {path: digest_of(data) for path, data in files.items()}
    firmware = [hashes[path] for path in hashes if path.startswith("firmware_py/")]
    record = {
        **described(order.board, order.settings, bundle, firmware),
        "paths": [*files, INSTALLED, MAIN],
        "sha256": {**hashes, MAIN: digest_of((ROOM / "micropython" / MAIN).read_bytes())},
    }
    return (json.dumps(record) + "\n").encode()


def _folders(paths: Any) -> list[str]:
    """Return the parent folders of ``paths``, outer ones first."""
    parents = {str(parent) for path in paths for parent in Path(path).parents}
    return sorted(parents - {"."})
