"""What the microcontroller's script says of a wrong configuration, and that its loop takes no memory."""

import json

import numpy as np
import pytest
from micropython_board import STEP, make_board
from micropython_run import run
from tiny import ENCODER, SHAPE, bundle_fields

from firmware_py.inference.bundle import create_bundle
from firmware_py.micropython.spool import Spool
from firmware_py.micropython.store import FileStore
from firmware_py.protocol import packet
from firmware_py.protocol.frame_authenticator import UPLINK, Mac
from firmware_py.protocol.framing import Deframer
from firmware_py.protocol.recording_messages import NoRecording, decode_message

pytestmark = pytest.mark.emulated
SECRET = bytes(range(32)).hex()
COUNTS = np.random.default_rng(0).integers(-9000, 9000, (3, *SHAPE)).astype("<i2")


@pytest.fixture
def board(tmp_path):
    bundle = create_bundle(tmp_path / "bundle", ENCODER, bundle_fields())
    make_board(tmp_path / "board", bundle, 1, COUNTS, SECRET)
    return tmp_path / "board"


def change(board, **more):
    path = board / "device.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))


def start(board):
    return run(board, "from firmware_py.micropython.start import start\nstart()\n").strip()


def besides_health(said):
    """The lines of ``said`` but for those that an installation waits for."""
    return [
        line for line in said.splitlines() if not line.startswith(("epic: hello sent", "epic: health sent"))
    ]


REPLAY = {"kind": "replay", "path": "gathers.npy", "step": STEP}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"devise": 1}, "device.json: unknown  devise; known are"),
        ({"device": "1"}, "device.json:  device: expected int, got '1'"),
        ({"device": 2}, "device: expected 0 to 1, as in the bundle, got 2"),
        ({"survey": 1 << 16}, "device.json:  survey: expected 0 to 65535, got 65536"),
        ({"secret": ""}, "expected a secret, or"),
        ({"insecure": True}, "expected a secret, or"),
        ({"secret": "other.mac"}, "other.mac: not found; expected a MAC secret"),
        ({"link": {}}, "device.json: link kind is missing"),
        ({"link": {"kind": "lora"}}, "expected link kind of ('uart', 'usb', 'tcp'), got 'lora'"),
        ({"link": {"kind": "uart", "port": 7}}, "link: no uart port 7 on this board"),
        ({"link": {"kind": "uart", "port": "LP1"}}, "link: no uart port LP1 on this board"),
        ({"link": {"kind": "uart", "port": 1.5}}, "device.json: link port: expected int, got 1.5"),
        ({"link": {"kind": "usb", "port": 0}}, "link: usb port 0 is the prompt's; take port 1, or a uart"),
        ({"link": {"kind": "usb", "port": 1}}, "link: no usb port 1 on this board"),
        ({"source": {"kind": "module", "name": "adc"}}, "source: expected a module 'adc' with open_source"),
        ({"source": {**REPLAY, "path": "no.npy"}}, "no.npy: cannot be read"),
        ({"source": {**REPLAY, "path": "main.py"}}, "main.py: expected a .npy file, version 1"),
        ({"spool": {"path": "spool.bin", "records": 1}}, "spool records: expected 2 to 65535, got 1"),
        ({"bundle": "nowhere"}, "nowhere/manifest.json: not found; copy the bundle"),
    ],
)
def test_a_wrong_configuration_is_one_line_and_leaves_the_prompt(board, more, said):
    change(board, **more)
    line = start(board)
    assert line.startswith("epic: ") and said in line and "\n" not in line


def test_a_file_that_is_not_json(board):
    (board / "device.json").write_text('{"device": 1,')
    assert start(board) == "epic: device.json: not JSON"


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        (
            "bundle/encoder.tflite",
            lambda data: data[:-1] + b"x",
            "the file is damaged or another's, copy it again",
        ),
        ("bundle/manifest.json", lambda data: data[:40], "not a whole manifest"),
        (
            "bundle/manifest.json",
            lambda data: data.replace(b"epic-bundle/1", b"epic-bundle/9"),
            "expected format",
        ),
        (
            "bundle/manifest.json",
            lambda data: data.replace(b'"n_time": 100', b'"n_time": 900'),
            "acquisition is not",
        ),
        ("device.mac", lambda data: data[:-2], "device.mac: expected 32 bytes in hex"),
        ("gathers.npy", lambda data: data[:-2], "gathers.npy: 3 gathers expected"),
        (
            "gathers.npy",
            lambda data: data.replace(b"<i2", b"<f4"),
            "gathers.npy: expected int16 (n, 2, 100, 3)",
        ),
    ],
)
def test_a_damaged_file_is_said(board, name, damage, said):
    path = board / name
    path.write_bytes(damage(path.read_bytes()))
    assert said in start(board)


def test_a_firmware_without_a_runtime_is_said(board):
    lost = "import os\nos.remove('ml.py')\n"
    script = lost + "from firmware_py.micropython.start import start\nstart()\n"
    assert "install OpenMV's firmware" in run(board, script)


# A board as it is at power-up, whose reset is said.
POWER_UP = """
import quiet_time
quiet_time.sleep_ms = lambda ms: None
from firmware_py.micropython import assembly, spool, start
{}
try:
    start.start()
except SystemExit as error:
    print(error)
"""


def test_a_fault_in_the_loop_starts_the_board_anew(board):
    """The flash fails under the spool: the record is not sent unkept, and the board resets."""
    script = """
def fail(self, size):
    raise spool.SpoolError("spool.bin: cannot be written")
spool.Spool.append = fail
assembly.open_line = lambda link: None
"""
    assert run(board, POWER_UP.format(script)).splitlines() == [
        "epic: SpoolError('spool.bin: cannot be written',); starting anew",
        "reset",
    ]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"spool": {"path": "/sdcard/spool.bin"}}, "/sdcard/spool.bin: cannot keep a spool there"),
        ({"source": {"kind": "module", "name": "adc"}}, "OSError(110,)"),
    ],
    ids=["no-card", "silent-digitiser"],
)
def test_hardware_that_is_not_there_at_power_up_starts_the_board_anew(board, more, said):
    (board / "adc.py").write_text("def open_source(*shape):\n    raise OSError(110)\n")
    change(board, **more)
    line, reset = run(board, POWER_UP.format("assembly.open_line = lambda link: None")).splitlines()
    assert line.startswith("epic: ") and said in line and line.endswith("; starting anew")
    assert reset == "reset"


def test_another_devices_spool_is_one_line_and_leaves_the_prompt(board):
    spool = Spool(FileStore(str(board / "spool.bin"), 4), (0, 1))
    record = packet.encode_record(packet.Record(packet.LATENT, 0, 1, 5, 1, payload=b"x" * 8))
    spool.record[: len(record)] = record
    spool.append(len(record))
    spool.close()
    line = start(board)
    assert line.startswith("epic: spool.bin: holds records of device 0") and "\n" not in line


# Runs the parts of a turn with the heap locked: whatever allocates raises MemoryError.
UNDER_LOCK = """
import micropython, time
from firmware_py.protocol import packet
from firmware_py.micropython import assembly, start
from firmware_py.micropython.config import load_config
from firmware_py.micropython.wire import frame_into

class Line:
    def __init__(self):
        self.sent = 0
        self.garbage = 40
    def readinto(self, buffer):
        if not self.garbage:
            return None
        self.garbage -= 1
        for i in range(len(buffer)):
            buffer[i] = (i * 37) & 0xff
        return len(buffer)
    def write(self, buffer, at, n):
        self.sent += n
        return n

line = Line()
assembly.open_line = lambda link: line
device = start.build(load_config("device.json"), lambda: None)[0]
device.turn()
line.sent = 0
device._window._due_ms[0] = time.ticks_add(time.ticks_ms(), 30000)
device.health._wait_ms = 100000

def locked(what, call):
    micropython.heap_lock()
    try:
        result = call()
    except MemoryError:
        result = "allocates"
    micropython.heap_unlock()
    print(what, result)

def fill():
    return device._compander.fill(device._source, device._feed)

def frame():
    return frame_into(device._sealed, 46, device._frame)

def write():
    return device._line.send(device._frame, 60)

def control():
    return bytearray(9)

locked("control", control)
garbage = line.garbage
locked("garbage", device._inbox.poll)
print("read", garbage > line.garbage)
line.garbage = 0
device._source.event = 3
locked("idle", device.turn)
print("waiting", device._spool.waiting)
device._source.event = 1
device._source.poll()
locked("fill", fill)
locked("frame", frame)
locked("write", write)
"""


def test_a_turn_that_records_nothing_takes_no_memory_nor_does_a_recording_before_its_encoder(board):
    assert besides_health(run(board, UNDER_LOCK)) == [
        "control allocates",
        "garbage 0",
        "read True",
        "idle False",
        "waiting 1",
        "fill True",
        f"frame {38 + 8 + 2}",
        "write True",
    ]


# A line that is never silent and says nothing true, faster than the board reads; and the answers of a centre.
BABBLE = """
from firmware_py.protocol import packet
from firmware_py.micropython import assembly, start
from firmware_py.micropython.config import load_config

class Line:
    read = 0
    def readinto(self, buffer):
        self.read += len(buffer)
        if self.read > 200000:
            raise ValueError("the turn does not end")
        for i in range(len(buffer)):
            buffer[i] = b"\\x03ab\\0"[i % 4]
        return len(buffer)
    def write(self, buffer, at, n):
        return n

assembly.open_line = lambda link: Line()
device = start.build(load_config("device.json"), lambda: None)[0]
for _ in range(3):
    print(device.turn(), device._spool.waiting)
"""


def test_a_line_that_never_falls_silent_does_not_stop_the_recording(board):
    assert besides_health(run(board, BABBLE)) == ["True 1", "True 2", "True 3"]


# What a centre answers to the first HELLO, in frames with its seal, and with another's.
SET_RATES = """
from firmware_py.protocol import packet
from firmware_py.micropython import assembly, start
from firmware_py.micropython.config import load_config
from firmware_py.micropython.wire import frame_bytes, frame_into, seal_into

class Line:
    heard = b""
    def readinto(self, buffer):
        n = min(len(buffer), len(self.heard))
        buffer[:n] = self.heard[:n]
        self.heard = self.heard[n:]
        return n or None
    def write(self, buffer, at, n):
        return n

line = Line()
assembly.open_line = lambda link: line
device = start.build(load_config("device.json"), lambda: None)[0]

def answer(seal, payload, sequence=0, boot=0):
    device.health.poll()
    sequence = sequence or device.health._sequence
    boot = boot or device._header.boot
    record = packet.Record(packet.HELLO, 1, 1, boot, sequence, sample_time_us=1790000000000000, payload=payload)
    data = packet.encode_record(record)
    buffer = bytearray(data + bytes(8))
    n = seal_into(seal, buffer, len(data))
    frame = bytearray(frame_bytes(n))
    line.heard = bytes(frame[: frame_into(buffer, n, frame)])
    device._hear(device._inbox.poll())
    print(device.status()[-1])

device.turn()
answer(device._up, b"\\x03\\x00")
answer(device._down, b"\\x03\\x00", sequence=7)
answer(device._down, b"\\x03\\x00", boot=4)
answer(device._down, b"\\x03")
answer(device._down, b"\\x03\\x00 and more")
device.turn()
answer(device._down, b"")
answer(device._down, b"\\x07\\x00")
answer(device._down, b"\\x02\\x00")
device.turn()
answer(device._down, b"\\x00\\x00")
for slot in range(device._spool.n):
    if device._spool.state[slot]:
        print("record of", device._spool.read(slot) - packet.HEADER_BYTES)
"""


# What a centre answers to the first two records.
ANSWERS = (
    SET_RATES[: SET_RATES.index("def answer")]
    + """
def answer(kind, sequence):
    record = packet.Record(kind, 1, 1, device._header.boot, sequence, payload=b"no room")
    data = packet.encode_record(record)
    buffer = bytearray(data + bytes(8))
    n = seal_into(device._down, buffer, len(data))
    frame = bytearray(frame_bytes(n))
    line.heard = bytes(frame[: frame_into(buffer, n, frame)])
    device._hear(device._inbox.poll())
    waiting, _, refused, _, acknowledged = device.status()[:5]
    print(waiting, refused, acknowledged and acknowledged[1])

device.turn()
device.turn()
answer(packet.REFUSAL, 1)
answer(packet.REFUSAL, 1)
answer(packet.ACK, 2)
"""
)


def test_a_refused_record_is_not_told_as_acknowledged(board):
    assert besides_health(run(board, ANSWERS)) == ["refused: no room", "1 1 None", "1 1 None", "0 1 2"]


def test_the_centre_sets_the_rate_and_nobody_else_does(tmp_path):
    bundle = create_bundle(tmp_path / "bundle", ENCODER, {**bundle_fields(), "prefixes": [[3, 8], [3, 4]]})
    make_board(tmp_path / "board", bundle, 1, COUNTS, SECRET)
    assert besides_health(run(tmp_path / "board", SET_RATES)) == [
        *["8"] * 4,
        "3",
        "3",
        "rate: the centre has set latents of 7 bytes, which this model has not",
        "8",
        "2",
        "8",
        "record of 8",
        "record of 3",
        "record of 2",
    ]


def test_prefixes_that_cannot_be_are_said(tmp_path):
    bundle = create_bundle(tmp_path / "bundle", ENCODER, bundle_fields())
    make_board(tmp_path / "board", bundle, 1, COUNTS, SECRET)
    manifest = tmp_path / "board" / "bundle" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "prefixes": [[9, 8]]}))
    assert "not a whole manifest" in start(tmp_path / "board")


# What a centre says about a recording, and what the device sends next.
ASKED = (
    SET_RATES[: SET_RATES.index("def answer")].replace(
        "        return n\n\nline",
        "        self.said += bytes(buffer[at : at + n])\n        return n\n\nline",
    )
    + """
from binascii import hexlify

line.said = b""

def hear(payload):
    record = packet.Record(packet.RECORDING, 1, 1, 5, 9, 1001, 1790000000000000, payload=payload)
    data = packet.encode_record(record)
    buffer = bytearray(data + bytes(8))
    n = seal_into(device._down, buffer, len(data))
    frame = bytearray(frame_bytes(n))
    line.heard = bytes(frame[: frame_into(buffer, n, frame)])
    line.said = b""
    device._hear(device._inbox.poll())
    print(hexlify(line.said).decode())

hear(b"\\xa1\\x65fetch\\xa1\\x6amisfit_ppm\\x00")
hear(b"\\xa1\\x63end\\xa0")
print(device._header.boot)
"""
)


def test_a_microcontroller_says_that_it_keeps_no_recordings(board):
    said, after_end, boot = run(board, ASKED).splitlines()
    (data,) = Deframer(Mac(bytes.fromhex(SECRET), UPLINK).open).feed(bytes.fromhex(said))
    record = packet.decode_record(data)
    assert (record.type, record.device, record.survey) == (packet.RECORDING, 1, 1)
    assert (record.boot, record.event, record.sample_time_us) == (int(boot), 1001, 1_790_000_000_000_000)
    assert decode_message(record.payload) == NoRecording("a microcontroller keeps no recordings")
    assert after_end == ""
