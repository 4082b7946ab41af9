"""A device put onto a microcontroller's flash: what lands, in which order, what a second run does, what is refused.

The board is a folder, and mpremote a stand-in that copies into it; what the installer runs there runs under real
MicroPython where it is installed.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import tty
from pathlib import Path

import micropython_unix
import pytest
from installing import install
from micropython_run import ROOM, RUNNER, STUBS, find_micropython, run_as_is

import epic
from boards.install.linux.install import check_fit
from boards.install.linux.shell import InstallError
from boards.install.micropython import console, mcu, mpremote
from boards.profile import PROFILE_FOLDER, load_board
from firmware_py.micropython.padding import length_of
from firmware_py.micropython.slots import room_of

pytestmark = pytest.mark.slow
# As they are, behind what the fixture puts in their place.
check_identity, try_model, watch = mcu.check_identity, mcu.try_model, console.watch

STAND_IN = Path(__file__).parents[1] / "support" / "mpremote"
STOCK = STUBS.parent / "stock"
PORT = ["--port", "/dev/ttyACM0"]
# What stands for the firmware and the hardware.
BARE = {"ml.py", "machine.py"}
# An ESP32 whose flash has a partition of that name.
ESP32 = """
class Partition:
    TYPE_DATA = 1

    @staticmethod
    def find(kind, label):
        return [Partition()] if (kind, label) == (1, "spool") else []

    def ioctl(self, op, argument):
        return {4: 2, 5: 4096}.get(op, 0)
"""
DIGITISER = "def open_source(shots, samples, receivers):\n    raise OSError('no digitiser')\n"


class Flash:
    """The board that the stand-in for mpremote serves."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "flash"
        self.root.mkdir()
        for name in ("ml.py", "machine.py"):
            shutil.copy(STUBS / name, self.root)

    def calls(self):
        file = self.folder / "calls"
        calls = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return calls

    def files(self):
        return {str(p.relative_to(self.root)): p.read_bytes() for p in self.root.rglob("*") if p.is_file()}


@pytest.fixture
def board(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(STAND_IN), prepend=":")
    monkeypatch.setenv("STAND_IN_PYTHON", sys.executable)
    monkeypatch.setenv("BOARD", str(tmp_path))
    monkeypatch.setattr(mpremote, "RETRY_S", 0.01)
    monkeypatch.setattr(mpremote, "GONE_S", 0.0)
    # It takes most of the time; one test has it.
    monkeypatch.setattr(mcu, "check_fit", lambda *_: None)
    # A stand-in is no board that its name is given for, and says nothing.
    monkeypatch.setattr(mcu, "check_identity", lambda *_: None)
    monkeypatch.setattr(console, "watch", lambda *_: console.Watched("hello", "epic: hello sent"))
    (tmp_path / "digitiser.py").write_text(DIGITISER)
    return Flash(tmp_path)


def put(parts, board, *more, digitiser="digitiser.py", endpoint="uart:1", name="openmv-rt1062"):
    source = ["--digitiser", board.folder / digitiser] if digitiser else []
    return install(parts, *PORT, *source, *more, board=name, endpoint=endpoint)


def one_line(capsys):
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: "), error
    return error


@pytest.mark.parametrize(
    ("name", "port"), [("openmv-rt1062", 1), ("openmv-h7-plus", 3), ("arduino-nicla-vision", "LP1")]
)
def test_everything_a_device_needs_lands_and_main_comes_last(parts, board, name, port, monkeypatch):
    monkeypatch.setattr(mcu, "check_fit", check_fit)
    assert put(parts, board, name=name, endpoint=f"uart:{port}") == 0
    files = board.files()
    for path in (
        "firmware_py/protocol/packet.mpy",
        "firmware_py/micropython/start.mpy",
        "digitiser.mpy",
        "device-0.mac",
    ):
        assert path in files
    assert files["bundle/encoder.tflite"] == (parts / "bundle" / "encoder.tflite").read_bytes()
    assert files["device-0.mac"] == (parts / "keys" / "device-0" / "device-0.mac").read_bytes()
    assert not any("secret" in path or "node.py" in path for path in files), "what it does not use stays here"
    config = json.loads(files["device.json"])
    assert (config["device"], config["board"]) == (0, name)
    assert (config["link"]["kind"], config["link"]["port"]) == ("uart", port)
    calls = board.calls()
    copies = [call for call in calls if call.startswith("cp ")]
    assert copies[-1] == "cp :main.py" and copies.count("cp :main.py") == 1
    assert calls[-1] == "reset" and any("clock(" in call for call in calls)
    main = calls.index("cp :main.py")
    assert "trial" in calls[main - 2] and "facts" in calls[main - 3] and "facts" in calls[main + 1], (
        "compared, tried"
    )


def test_what_landed_is_what_the_device_starts_from_under_micropython(parts, board):
    """All it imports is there, and its configuration and bundle are as it wants them."""
    find_micropython()
    assert put(parts, board) == 0
    for path in STUBS.glob("*.py"):
        shutil.copy(path, board.root)
    script = (
        "from firmware_py.micropython import start\n"
        "from firmware_py.micropython.bundle import load_bundle\n"
        "from firmware_py.micropython.config import load_config, read_secret\n"
        "config = load_config('device.json')\n"
        "print(load_bundle(config['bundle']).latent, len(read_secret(config['secret'])), config['source']['name'])\n"
    )
    assert run_as_is(board.root, script).split() == ["8", "32", "digitiser"]


def test_the_installer_s_questions_are_answered_by_micropython(parts, board, monkeypatch, capsys):
    monkeypatch.setenv("INTERPRETER", f"node {RUNNER} {find_micropython()}")
    assert put(parts, board) == 0
    board.calls()
    capsys.readouterr()
    assert put(parts, board) == 0
    assert "nothing to change" in capsys.readouterr().out
    (board.root / "spool.bin").write_bytes(b"records")
    assert epic.main(["board", "uninstall", *PORT]) == 0
    assert set(board.files()) == BARE | {"spool.bin"}


def on_stock_micropython(board, monkeypatch):
    """What the installer runs there runs under real MicroPython with native code."""
    interpreter = board.folder / "interpreter"
    interpreter.write_text(f'#!/bin/sh\ncd "$1" && exec {" ".join(micropython_unix.command())} "$2"\n')
    interpreter.chmod(0o755)
    monkeypatch.setenv("INTERPRETER", str(interpreter))
    (board.root / "ml.py").unlink()


def test_stock_firmware_gets_the_encoder_that_was_compiled_for_it_and_runs_it(
    parts, board, monkeypatch, capsys
):
    on_stock_micropython(board, monkeypatch)
    assert put(parts, board) == 0
    assert "bundle/encoder.tflite" not in board.files(), "nothing there could read it"
    script = (
        "from firmware_py.micropython.bundle import load_bundle\n"
        "from firmware_py.micropython.runtime import open_model, reserve\n"
        "bundle = load_bundle('bundle')\n"
        "print(open_model(bundle, reserve(bundle), lambda: None))\n"
    )
    said = micropython_unix.run(board.root, script, path=".:.frozen")
    assert "ViperModel" in said
    refuses = "class Model:\n    def __init__(self, path):\n        raise ValueError('Failed to allocate tensors')\n"
    (board.root / "ml.py").write_text(refuses)
    capsys.readouterr()
    assert put(parts, board) == 0
    assert "bundle/encoder.tflite" in board.files()
    assert "by native code" in capsys.readouterr().out, "tried there, where ml cannot load it"


def test_a_board_without_the_port_of_its_endpoint_is_told(parts, board, monkeypatch, capsys):
    on_stock_micropython(board, monkeypatch)
    shutil.copy(STOCK / "machine.py", board.root)
    assert put(parts, board) == 2
    assert "the board has not the port that --endpoint names: ConfigError: link: no uart port 1" in one_line(
        capsys
    )
    assert "main.py" not in board.files()


def test_over_wifi_the_board_is_told_network_and_gateway_and_the_password_is_shown_nowhere(
    parts, board, capsys
):
    secret = board.folder / "password"
    secret.write_text("a secret of the network\n")
    wifi = ["--ssid", "survey", "--password-file", secret]
    assert put(parts, board, *wifi, endpoint="192.0.2.1:5558") == 0
    files = board.files()
    link = json.loads(files["device.json"])["link"]
    assert link == {
        "kind": "tcp",
        "endpoint": "192.0.2.1:5558",
        "ssid": "survey",
        "password": "a secret of the network",
    }
    assert b"a secret of" not in files["installed.json"]
    said = "".join(capsys.readouterr())
    assert "a secret of" not in said + "".join(board.calls())
    assert "endpoint:" not in said
    assert put(parts, board, *wifi, "--dry-run", endpoint="centre.example:5558") == 0
    assert "note: endpoint: centre.example is a name" in capsys.readouterr().out
    assert put(parts, board, *wifi, endpoint="uart:1") == 2
    assert "--ssid: expected with an endpoint HOST:PORT, got uart:1" in one_line(capsys)


def test_with_a_signing_key_it_takes_updates_and_a_new_bundle_of_an_installation_is_in_use(
    parts, board, tmp_path
):
    key = tmp_path / "signing.public"
    key.write_text("ab" * 32 + "\n")
    assert put(parts, board, "--signing-key", key) == 0
    files = board.files()
    assert json.loads(files["device.json"])["update"] == {"key": "signing.public"}
    assert files["signing.public"] == key.read_bytes()
    for path in ("slots.0", "bundle.b/manifest.json"):
        (board.root / path).parent.mkdir(exist_ok=True)
        (board.root / path).write_text("an update's")
    assert put(parts, board, "--signing-key", key, "--baud", "9600") == 0
    assert (board.root / "slots.0").exists(), "the bundle is the one that was installed, so the update stays"
    (board.root / "bundle" / "manifest.json").write_text("another's")
    assert put(parts, board, "--signing-key", key) == 0
    assert (board.root / "slots.0").read_bytes() == mcu.BLANK_NOTE
    assert epic.main(["board", "uninstall", *PORT]) == 0
    assert set(board.files()) == BARE and not (board.root / "bundle.b").exists()


@pytest.mark.parametrize("free_bytes", [4_000_000, 480_000], ids=["second copies", "none"])
def test_on_fat_the_files_of_updates_are_made_in_advance(
    parts, board, tmp_path, monkeypatch, capsys, free_bytes
):
    with_facts(monkeypatch, free_bytes=free_bytes)
    key = tmp_path / "signing.public"
    key.write_text("ab" * 32 + "\n")
    assert put(parts, board, "--signing-key", key) == 0
    files = board.files()
    for name in ("manifest.json", "encoder.epicnn"):
        path = board.root / "bundle" / name
        assert len(files[f"bundle/{name}"]) == len(files[f"bundle.b/{name}"])
        with path.open("rb") as file:
            length = length_of(file)
        assert room_of(path) >= length + mcu.SLOT_ROOM_BYTES
    for path in ("slots.0", "slots.1", "bundle/offer", "bundle.b/offer"):
        assert files[path] == mcu.BLANK_NOTE
    assert ("second copies: none" in capsys.readouterr().out) == (free_bytes == 480_000)
    if free_bytes == 4_000_000:
        assert put(parts, board, "--signing-key", key) == 0
        assert "nothing to change" in capsys.readouterr().out


def test_pins_of_a_uart_that_has_none_are_named_in_the_endpoint(parts, board, monkeypatch):
    with_facts(monkeypatch, viper=True)
    assert put(parts, board, name="esp32-s3", endpoint="uart:1:17:18") == 0
    link = json.loads(board.files()["device.json"])["link"]
    assert (link["port"], link["tx"], link["rx"]) == (1, "17", "18")


def test_a_second_run_copies_what_changed_after_it_has_stopped_the_device(parts, board, capsys):
    assert put(parts, board) == 0
    board.calls()
    assert put(parts, board) == 0
    assert "nothing to change" in capsys.readouterr().out
    calls = board.calls()
    assert not any(call.startswith("cp") for call in calls) and calls[-1] == "reset", "it goes on"

    assert put(parts, board, "--baud", "9600") == 0
    calls = board.calls()
    assert [call for call in calls if call.startswith("cp")] == [
        "cp :device.json",
        "cp :copy/device.json",
        "cp :sums",
        "cp :copy/sums",
        "cp :installed.json",
        "cp :main.py",
    ]
    stopped = next(i for i, call in enumerate(calls) if "remove" in call)
    assert "['main.py']" in calls[stopped] and calls[stopped + 1] == "reset", (
        "the watchdog ends with the reset"
    )
    assert stopped < calls.index("cp :device.json")


def test_a_main_of_another_s_is_kept_only_with_replace_and_put_back(parts, board, capsys):
    other = b"print('a program of my own')\n"
    (board.root / "main.py").write_bytes(other)
    assert put(parts, board) == 2
    assert "main.py there is not EPIC's; --replace keeps it as main.py.before" in one_line(capsys)
    assert set(board.files()) == BARE | {"main.py"}
    assert put(parts, board, "--replace") == 0
    assert board.files()["main.py.before"] == other
    board.calls()
    assert put(parts, board, "--baud", "9600") == 0, "what is EPIC's own needs no --replace"
    assert board.files()["main.py.before"] == other
    assert epic.main(["board", "uninstall", *PORT]) == 0
    assert board.files()["main.py"] == other
    assert set(board.files()) == BARE | {"main.py"}


@pytest.mark.parametrize(
    ("spool", "before", "kind", "said"),
    [
        (None, {}, "file", "a file beside the program, since the board has no better place"),
        ({"kind": "littlefs"}, {}, "littlefs", "littlefs beside the program; a power cut loses nothing"),
        (
            {"kind": "flash", "start": "4 MiB", "bytes": "256 KiB"},
            {},
            "flash",
            "raw flash of its own; a power cut loses nothing",
        ),
        ({"kind": "littlefs"}, {"esp32.py": ESP32}, "flash", "raw flash of its own"),
        (
            {"kind": "littlefs"},
            {"spool.bin": "records"},
            "file",
            "stays in spool.bin, where records may wait",
        ),
    ],
)
def test_the_spool_s_place_is_the_board_s_best_and_its_cost_is_said(
    parts, board, capsys, spool, before, kind, said
):
    profile = (PROFILE_FOLDER / "openmv-rt1062.toml").read_text()
    if spool:
        profile += "\n[spool]\n" + "".join(f'{key} = "{value}"\n' for key, value in spool.items())
        profile += 'source = "a test"\n'
    own = board.folder / "openmv-rt1062.toml"
    own.write_text(profile)
    for name, text in before.items():
        (board.root / name).write_text(text)
    assert put(parts, board, name=own) == 0
    assert f"note: spool: {said}" in capsys.readouterr().out.replace("note: spool: spool", "note: spool")
    section = json.loads(board.files()["device.json"])["spool"]
    assert section["kind"] == kind
    if kind == "flash":
        expected = {"path": "spool"} if before else {"start": 4 << 20, "bytes": 256 << 10}
        assert section == {"kind": "flash", **expected}
    assert epic.main(["board", "uninstall", *PORT, "--purge"]) == 0
    assert set(board.files()) == BARE | {name for name in before if name != "spool.bin"}


@pytest.mark.parametrize(
    ("there_bytes", "free_bytes", "stride", "said"),
    [
        (None, 4_000_000, 4096, "loses nothing that was stored"),
        (None, 900_000, 512, "may lose the 8 stored ones of its erase block"),
        (256 * 512, 4_000_000, 512, "may lose the 8 stored ones of its erase block"),
        (256 * 4096, 300_000, 4096, "loses nothing that was stored"),
    ],
    ids=["room", "no room", "a dense one is there", "one is there"],
)
def test_a_spool_file_has_an_erase_block_for_each_slot_where_there_is_room(
    parts, board, capsys, monkeypatch, there_bytes, free_bytes, stride, said
):
    with_facts(monkeypatch, free_bytes=free_bytes)
    if there_bytes:
        (board.root / "spool").mkdir()
        (board.root / "spool" / "records").write_bytes(bytes(there_bytes))
    assert put(parts, board) == 0
    assert json.loads(board.files()["device.json"])["spool"] == {
        "kind": "file",
        "path": "spool/records",
        "records": 256,
        "stride": stride,
    }
    assert said in capsys.readouterr().out


def test_a_module_that_is_no_longer_used_goes(parts, board):
    assert put(parts, board) == 0
    (board.folder / "other.py").write_text(DIGITISER)
    assert put(parts, board, digitiser="other.py") == 0
    assert "other.mpy" in board.files() and "digitiser.mpy" not in board.files()


def test_a_dry_run_says_every_step_and_does_none(parts, board, capsys):
    assert put(parts, board, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "would copy" in out and "would set the clock, put main.py in place" in out
    assert set(board.files()) == BARE
    assert board.calls()[-1] == "reset", "what ran there was interrupted, and goes on"


@pytest.mark.parametrize("copies", [0, 20])
def test_cut_off_it_waits_at_its_prompt_and_the_next_run_goes_on(parts, board, capsys, copies):
    assert put(parts, board) == 0
    wanted = board.files()
    for path in ("firmware_py", "bundle"):
        shutil.rmtree(board.root / path)
    (board.folder / "cut").write_text(str(copies))
    assert put(parts, board) == 2
    assert "cannot be opened; check the cable" in one_line(capsys)
    assert "main.py" not in board.files(), "nothing half-written is started"
    assert put(parts, board) == 0
    assert board.files() == wanted


def test_after_a_reset_it_waits_for_the_board(parts, board, monkeypatch):
    assert put(parts, board) == 0
    reset = mpremote.Prompt.reset

    def gone_for_a_while(prompt):
        reset(prompt)
        (board.folder / "away").write_text("3")

    monkeypatch.setattr(mpremote.Prompt, "reset", gone_for_a_while)
    assert put(parts, board, "--baud", "9600") == 0
    assert json.loads(board.files()["device.json"])["link"]["baud"] == 9600


def test_what_is_read_back_otherwise_is_not_started(parts, board, capsys):
    (board.folder / "fails-encoder.tflite").touch()
    assert put(parts, board) == 2
    assert "bundle/encoder.tflite: read back, it is not what was written" in one_line(capsys)
    assert "main.py" not in board.files()


def test_status_and_uninstall(parts, board, capsys):
    assert put(parts, board) == 0
    capsys.readouterr()
    assert epic.main(["board", "status", *PORT, "--json"]) == 3, "it does not run"
    found = json.loads(capsys.readouterr().out)
    assert (found["device"], found["board"], found["damaged"]) == (0, "openmv-rt1062", [])
    (board.root / "bundle" / "encoder.tflite").write_bytes(b"")
    assert epic.main(["board", "status", *PORT]) == 1
    assert "bundle/encoder.tflite not as installed" in capsys.readouterr().out
    kept = {"spool/records", "spool/records.starts", "boot"}
    (board.root / "spool").mkdir()
    for name in kept:
        (board.root / name).write_bytes(b"1")
    assert epic.main(["board", "uninstall", *PORT]) == 0
    assert set(board.files()) == BARE | kept
    capsys.readouterr()
    assert epic.main(["board", "status", *PORT]) == 2
    assert "no EPIC device is installed there" in one_line(capsys)
    assert epic.main(["board", "uninstall", *PORT, "--purge"]) == 0
    assert set(board.files()) == BARE


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"endpoint": "usb:0"}, "usb:0 is the board's prompt"),
        (
            {"endpoint": "usb:1"},
            "OpenMV Cam RT1062 has no second USB port, got usb:1; its UARTs are uart:1 (P4",
        ),
        (
            {"endpoint": "uart:0"},
            "uart:0 of OpenMV Cam RT1062 is wired to something else: Bluetooth; take uart:1",
        ),
        ({"endpoint": "uart:3"}, "OpenMV Cam RT1062 has no uart:3; it has uart:1 (P4 TX, P5 RX)"),
        (
            {"endpoint": "uart:1", "name": "arduino-nicla-vision"},
            "wired to something else: Bluetooth; take uart:LP1",
        ),
        ({"endpoint": "uart:1", "name": "arduino-giga-r1"}, "the prompt (REPL), besides USB; take uart:2"),
        ({"endpoint": "uart:1", "name": "esp32-c3"}, "have no pins of their own; expected uart:1:TX:RX"),
        ({"endpoint": "tcp://127.0.0.1:5999"}, "expected uart:N, usb:N or HOST:PORT"),
        ({"digitiser": None}, "expected either --digitiser FILE.py or one --replay FILE"),
        ({"digitiser": None, "more": ["--replay", "gathers.npy"]}, "--step"),
        ({"digitiser": "main.py"}, "a module FILE.py of a name of its own, got main.py"),
        ({"digitiser": "nowhere.py"}, "nowhere.py: cannot be read"),
        ({"name": "raspberry-pi-4"}, "has no prompt for --port"),
        ({"more": ["--host", "root@board"]}, "expected --port, the board's prompt, and no --host"),
    ],
)
def test_what_cannot_be_installed_is_one_line_and_leaves_the_board_alone(parts, board, capsys, change, said):
    more = change.pop("more", [])
    assert put(parts, board, *more, **change) == 2
    assert said in one_line(capsys)
    assert board.calls() == []


def test_a_bundle_that_does_not_fit_is_refused_first(parts, board, capsys, monkeypatch):
    small = load_board("openmv-rt1062")
    small = small.model_copy(update={"model_limit": small.model_limit.model_copy(update={"size": 1000})})
    monkeypatch.setattr(mcu, "check_fit", lambda bundle, *_: check_fit(bundle, small))
    assert put(parts, board) == 2
    assert "does not fit OpenMV Cam RT1062" in one_line(capsys)
    assert board.calls() == []


def test_firmware_without_a_runtime_and_a_full_flash_are_told(parts, board, capsys, monkeypatch):
    (board.root / "ml.py").unlink()
    assert put(parts, board) == 2
    assert "with neither the module ml nor native code (viper); put other firmware on it" in one_line(capsys)
    (board.root / "ml.py").touch()
    ask = mpremote.Prompt.ask

    def full(prompt, function, *arguments):
        answer = ask(prompt, function, *arguments)
        return {**answer, "free_bytes": 90_000} if function == "facts" else answer

    monkeypatch.setattr(mpremote.Prompt, "ask", full)
    assert put(parts, board) == 2
    assert "there are 87.9 KiB; make room, or put an SD card in" in one_line(capsys)
    assert board.calls()[-1] == "reset"


def power_up(board):
    """What a board with stock MicroPython says from power-up until it stops."""
    script = "try:\n    exec(open('main.py').read())\nexcept SystemExit:\n    pass\n"
    return micropython_unix.run(board.root, script, path=".:.frozen").splitlines()


def flip(data):
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :]


# The device stops there, having imported its program and read its bundle; the second in safe mode, after five starts.
STOPS = ("epic: gathers.npy: cannot be read", "epic: link: no uart port 1 on this board")
DAMAGES = {"flipped": flip, "cut off": lambda data: data[:-9], "empty": lambda data: b"", "missing": None}


@pytest.mark.emulated
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_board_restores_a_damaged_file_from_its_second_copy(parts, board, monkeypatch, damage):
    put_stock(parts, board, monkeypatch)
    whole = board.files()
    assert power_up(board)[-1].startswith(STOPS)
    for path in (
        "firmware_py/__init__.mpy",
        "firmware_py/micropython/restore.mpy",
        "firmware_py/micropython/start.mpy",
        "firmware_py/micropython/native/flip.mpy",
        "device.json",
        "device-0.mac",
        "bundle/manifest.json",
        "bundle/encoder.epicnn",
    ):
        hurt(board, path, damage)
        # A cut while it was restored before.
        (board.root / f"{path}.new").write_bytes(b"half")
        said = power_up(board)
        assert said[0] == f"{path} was damaged; restored from its second copy"
        assert said[-1].startswith(STOPS)
        assert {name: board.files()[name] for name in whole} == whole and not list(board.root.rglob("*.new"))
    hurt(board, "sums", damage)
    hurt(board, "device.json", damage)
    assert power_up(board)[0].startswith("device.json was damaged")


@pytest.mark.emulated
def test_what_starts_the_board_is_restored_by_what_it_starts(parts, board, monkeypatch):
    put_stock(parts, board, monkeypatch)
    main = (board.root / "main.py").read_bytes()
    assert len(main) < 512, "one sector"
    (board.root / "main.py").write_bytes(main + b"# a sector's rest that was not erased")
    assert power_up(board)[0] == "main.py was damaged; restored from its second copy"
    assert (board.root / "main.py").read_bytes() == main
    for path in ("firmware_py/micropython/restore.mpy", "copy/firmware_py/micropython/restore.mpy"):
        hurt(board, path, DAMAGES["empty"])
    (said,) = power_up(board)
    assert said.startswith("epic: ") and said.endswith("; install again")


@pytest.mark.emulated
def test_damage_that_has_no_intact_second_copy_is_said_and_nothing_is_started(parts, board, monkeypatch):
    put_stock(parts, board, monkeypatch)
    for path in ("device.json", "copy/device.json"):
        hurt(board, path, flip)
    assert power_up(board) == ["epic: device.json: damaged, without an intact second copy; install again"]


@pytest.mark.emulated
def test_after_an_update_the_slots_decide_which_bundle_is_whole(parts, board, monkeypatch, capsys):
    put_stock(parts, board, monkeypatch)
    (board.root / "slots.0").write_text("damaged")
    hurt(board, "bundle.b/manifest.json", None)
    assert put(parts, board, *REPLAY, digitiser=None) == 0
    assert "nothing to change" in capsys.readouterr().out
    hurt(board, "bundle/manifest.json", flip)
    before = board.files()
    assert not any("restored" in line for line in power_up(board))
    assert board.files()["bundle/manifest.json"] == before["bundle/manifest.json"]


def test_without_room_for_second_copies_it_says_so_and_installs(parts, board, monkeypatch, capsys):
    with_facts(monkeypatch, free_bytes=300_000)
    assert put(parts, board) == 0
    assert "second copies: none, they need" in capsys.readouterr().out
    assert not (board.root / "copy").exists() and not (board.root / "bundle.b").exists()
    assert all(line.endswith(" -") for line in (board.root / "sums").read_text().splitlines()[1:])


REPLAY = ("--replay", "gathers.npy", "--step", "0.001")


def put_stock(parts, board, monkeypatch):
    """An installation on stock MicroPython, for this machine's processor."""
    with_facts(monkeypatch, viper=True, runtime=False, mpy=6 | 3 << 8 | 2 << 10)
    shutil.copy(STOCK / "machine.py", board.root)
    (board.root / "ml.py").unlink()
    assert put(parts, board, *REPLAY, digitiser=None) == 0


def hurt(board, path, damage):
    if damage:
        (board.root / path).write_bytes(damage((board.root / path).read_bytes()))
    else:
        (board.root / path).unlink()


def with_facts(monkeypatch, **more):
    ask = mpremote.Prompt.ask

    def answer(prompt, function, *arguments):
        found = ask(prompt, function, *arguments)
        return {**found, **more} if function == "facts" else found

    monkeypatch.setattr(mpremote.Prompt, "ask", answer)


@pytest.mark.parametrize(
    ("name", "facts", "said"),
    [
        (
            "openmv-rt1062",
            {"machine": "OPENMV4P with STM32H743"},
            "it says 'OPENMV4P with STM32H743'; give --board openmv-h7-plus",
        ),
        (
            "raspberry-pi-pico-w",
            {"machine": "Raspberry Pi Pico 2 W with RP2350"},
            "give --board raspberry-pi-pico-2-w",
        ),
        (
            "openmv-rt1062",
            {"machine": "Another"},
            "it says 'Another'; give a profile of its own: --board ./my-board.toml",
        ),
        (
            "teensy-4-1",
            {"runtime": False, "viper": True, "version": "1.24.1"},
            "expected MicroPython 1.25.0 or later, got 1.24.1",
        ),
        (
            "teensy-4-1",
            {"runtime": False, "viper": True, "heap_bytes": 100_000},
            "of heap, the board has 97.7 KiB free",
        ),
        (
            "teensy-4-1",
            {"runtime": False, "viper": True, "heap_bytes": 10**6, "largest_bytes": 20},
            "the board's largest is 20 B; take a smaller model",
        ),
    ],
)
def test_what_the_board_says_of_itself_counts(parts, board, capsys, monkeypatch, name, facts, said):
    monkeypatch.setattr(mcu, "check_identity", check_identity)
    with_facts(monkeypatch, **{"machine": "", **facts})
    assert put(parts, board, name=name) == 2
    assert said in one_line(capsys)
    assert set(board.files()) == BARE


def test_a_board_without_a_name_is_known_by_its_usb_identity(parts, board, capsys, monkeypatch):
    monkeypatch.setattr(mcu, "check_identity", check_identity)
    with_facts(monkeypatch, machine="")
    monkeypatch.setattr(mcu, "usb_id", lambda port: {"/dev/ttyACM0": "2e8a:0005"}[port])
    assert put(parts, board) == 2
    assert "on USB it is 2e8a:0005; give --board raspberry-pi-pico-2-w or raspberry-pi-pico-w" in one_line(
        capsys
    )
    monkeypatch.setattr(mcu, "usb_id", lambda port: "ffff:0001")
    assert put(parts, board) == 0, "nobody's that is known"


def test_openmv_s_firmware_that_cannot_load_the_model_gets_it_for_native_code(parts, board, monkeypatch):
    with_facts(monkeypatch, openmv="4.5.9", viper=True)
    assert put(parts, board) == 0
    assert "bundle/encoder.tflite" not in board.files()
    with_facts(monkeypatch, openmv="4.7.0")
    assert put(parts, board) == 0
    assert "bundle/encoder.tflite" in board.files()


def test_a_spool_of_another_device_is_not_taken_over(parts, board, capsys, monkeypatch):
    assert put(parts, board) == 0
    (board.root / "spool.bin").write_bytes(b"records")
    record = board.root / "installed.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "survey": 2}))
    assert put(parts, board, "--baud", "9600") == 2
    said = "its spool is that of device 0, survey 2, this is device 0, survey 1; once nothing waits"
    assert said in one_line(capsys)
    assert json.loads(board.files()["device.json"])["link"]["baud"] == 115_200


def test_a_model_that_does_not_run_there_is_not_started(parts, board, capsys, monkeypatch):
    monkeypatch.setattr(mcu, "try_model", try_model)
    ask = mpremote.Prompt.ask
    answers = {"trial": {"error": "MemoryError: memory allocation failed"}}
    monkeypatch.setattr(
        mpremote.Prompt, "ask", lambda prompt, name, *more: answers.get(name) or ask(prompt, name, *more)
    )
    assert put(parts, board) == 2
    assert "the model does not run there: MemoryError: memory allocation failed" in one_line(capsys)
    assert "main.py" not in board.files()
    answers["trial"] = {"runtime": "ViperModel", "inference_ms": 750, "heap_bytes": 102_400}
    assert put(parts, board) == 0
    assert "by native code, 750 ms an inference, 100 KiB of heap left" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("state", "said", "code"),
    [
        ("hello", "epic: hello sent, 0 records wait", 0),
        ("stopped", "epic: device.json: not found", 3),
        ("silent", "", 4),
    ],
)
def test_the_exit_code_says_how_the_start_went(parts, board, capsys, monkeypatch, state, said, code):
    monkeypatch.setattr(console, "watch", lambda *_: console.Watched(state, said))
    assert put(parts, board, "--json") == code
    found = json.loads(capsys.readouterr().out)
    assert (found["state"], found["said"], found["exit_code"], found["device"]) == (state, said, code, 0)
    assert found["steps"][0].startswith("note: spool") and found["steps"][1].startswith("copy ")
    assert put(parts, board) == code
    assert (
        said.removeprefix("epic: ") or "no HELLO within 120 s; nothing was said"
    ) in capsys.readouterr().out


def test_an_error_is_json_too_so_that_a_loop_over_ports_goes_on(parts, board, capsys):
    (board.root / "main.py").write_text("print('another program')")
    assert put(parts, board, "--json") == 2
    found = json.loads(capsys.readouterr().out)
    assert (found["port"], found["state"], found["exit_code"]) == ("/dev/ttyACM0", "not installed", 2)
    assert "--replace keeps it" in found["said"]


def test_another_s_boot_py_stays_and_is_told(parts, board, capsys):
    (board.root / "boot.py").write_text("# comments only\n")
    assert put(parts, board) == 0
    assert "boot.py" not in capsys.readouterr().out
    (board.root / "boot.py").write_text("import webrepl\n")
    assert put(parts, board, "--baud", "9600") == 0
    assert "boot.py there is another's: it stays" in capsys.readouterr().out
    assert epic.main(["board", "uninstall", *PORT]) == 0
    assert board.files()["boot.py"] == b"import webrepl\n"


@pytest.mark.parametrize(
    ("said", "wait_s", "seen"),
    [
        (b"MicroPython v1.27\r\nrate: all\r\nepic: hello sent, 0 records wait\r\n", 20.0, "hello"),
        (b"epic: device.json: not JSON\r\nepic: hello sent\r\n", 20.0, "stopped"),
        (b"Traceback\r\n", 1.0, "silent"),
    ],
)
def test_the_console_is_read_to_the_line_that_decides(said, wait_s, seen):
    board, port = os.openpty()
    tty.setraw(port)
    over = threading.Event()

    def say():
        # Opening a port throws away what it held.
        while not over.wait(0.1):
            os.write(board, said)

    speaker = threading.Thread(target=say)
    speaker.start()
    try:
        found = watch(os.ttyname(port), wait_s)
    finally:
        over.set()
        speaker.join()
        os.close(board)
        os.close(port)
    assert found.state == seen
    assert found.said.encode() in said.split(b"\r\n")


def test_a_port_that_does_not_come_back_is_told():
    with pytest.raises(InstallError, match="/dev/ttyACM77: cannot be opened; check the cable"):
        watch("/dev/ttyACM77", 0.5)


def test_without_mpremote_it_says_how_to_get_it(parts, board, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert put(parts, board) == 2
    assert "pip install -e '.[micropython]'" in one_line(capsys)


@pytest.fixture
def micropython_port(board):
    """A pseudo-terminal with the prompt of real MicroPython behind it."""
    micropython = find_micropython()
    prompt, port = os.openpty()
    tty.setraw(port)
    node = subprocess.Popen(["node", RUNNER, micropython, board.root, "-"], stdin=prompt)
    yield os.ttyname(port)
    node.kill()
    node.wait()
    os.close(prompt)
    os.close(port)


@pytest.fixture
def real_mpremote(board, monkeypatch):
    """In the stand-in's place."""
    pytest.importorskip("mpremote", reason="needs the extra micropython")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")


def test_the_real_mpremote_and_a_real_prompt_understand_it(
    board, real_mpremote, micropython_port, monkeypatch
):
    monkeypatch.setattr(mpremote, "GONE_S", 1.0)
    monkeypatch.setattr(mpremote, "TIMEOUT_S", 60.0)
    source = board.folder / "some file"
    source.write_bytes(bytes(range(256)) * 9)
    program = board.root / "firmware_py"
    shutil.copytree(ROOM / "micropython", program / "micropython")
    for name in mcu.SHARED:
        (program / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOM / name, program / name)
    with mpremote.Prompt(micropython_port) as prompt:
        prompt.ask("folders", ["a", "a/b"])
        prompt.copy({"a/b/one": source, "two": source})
        expected = hashlib.sha256(source.read_bytes()).hexdigest()
        found = prompt.ask("facts", ["a/b/one", "two", "three"], "installed.json", ["two"], "two", "spool")
        assert found["files"] == {"a/b/one": expected, "two": expected, "three": None}
        assert (found["spool"], found["partition"]) == (["two"], False)
        assert (found["runtime"], found["installed"], found["version"]) == (True, None, "1.27.0")
        # This build's heap grows, up to what is asked for.
        assert (
            found["largest_bytes"] == pytest.approx(512 << 10, abs=1024) and found["heap_bytes"] > 512 << 10
        )
        assert prompt.ask("trial") == {
            "error": "ConfigError: device.json: not found; copy the board's configuration"
        }
        # What the program left in memory is asked for without the reset that comes before other questions.
        state = prompt.ask_as_it_is("state")
        assert (state["running"], state["stopped"], state["version"]) == (False, None, "1.27.0")
        prompt.set_clock()
        prompt.reset()
        assert prompt.ask("remove", ["two", "a/b/one", "a/b", "a", "three"]) == ["two", "a/b/one", "a/b", "a"]
    shutil.rmtree(program)
    assert set(board.files()) == BARE


def test_a_port_that_is_none_is_one_line(parts, board, real_mpremote, capsys):
    module = ["--digitiser", board.folder / "digitiser.py"]
    port = ["--port", "/dev/ttyACM77"]
    assert install(parts, *port, *module, board="openmv-rt1062", endpoint="uart:1") == 2
    assert "/dev/ttyACM77: cannot be opened; check the cable" in one_line(capsys)
