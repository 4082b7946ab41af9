"""Every byte passes a microcontroller's line as it is, 0x03 too, which would interrupt a program at a prompt."""

import os
import subprocess
import tty

import micropython_unix
import pytest

from firmware_py.protocol import packet
from firmware_py.protocol.framing import Deframer, encode_frame

pytestmark = pytest.mark.emulated
LATENT = bytes([3] * 64 + list(range(64)))
# Its acknowledgement names boot and sequence in four bytes each.
BOOT, SEQUENCE = 0x03030303, 3
SCRIPT = f"""
from firmware_py.micropython.uart import Uart
from firmware_py.micropython.wire import Inbox, frame_bytes, frame_into, opened, seal_into
from firmware_py.protocol import packet
from firmware_py.protocol.frame_authenticator import Crc

class Port:
    def __init__(self):
        self._file = open("line", "r+b", buffering=0)
        self.write = self._file.write

    def readinto(self, buffer):
        # A file would wait until the whole buffer is full.
        return self._file.readinto(memoryview(buffer)[:1])


line = Uart(Port(), lambda: None)
record = packet.encode_record(packet.Record(packet.LATENT, 3, 3, {BOOT}, {SEQUENCE}, payload={LATENT!r}))
sealed = bytearray(record + bytes(4))
frame = bytearray(frame_bytes(len(sealed)))
line.send(frame, frame_into(sealed, seal_into(Crc(), sealed, len(record)), frame))
inbox = Inbox(line)
n = 0
while not n:
    n = inbox.poll()
print(bytes(inbox.data[: opened(Crc(), inbox.data, n)]))
"""


def test_a_latent_and_an_acknowledgement_of_0x03_are_neither_changed_nor_an_interrupt(tmp_path):
    gateway, line = os.openpty()
    tty.setraw(line)
    (tmp_path / "line").symlink_to(os.ttyname(line))
    with subprocess.Popen(
        [*micropython_unix.command(), "-c", SCRIPT],
        cwd=tmp_path,
        env={"MICROPYPATH": f"{micropython_unix.ROOT}:.frozen"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as board:
        try:
            deframer, records = Deframer(), []
            while not records:
                records = deframer.feed(os.read(gateway, 512))
            record = packet.decode_record(records[0])
            assert (record.payload, record.boot, record.sequence) == (LATENT, BOOT, SEQUENCE)
            answer = packet.encode_record(packet.Record(packet.ACK, 3, 3, BOOT, SEQUENCE, payload=b"\3" * 8))
            os.write(gateway, encode_frame(answer))
            assert board.communicate(timeout=60)[0].strip() == repr(answer)
        finally:
            board.kill()
            os.close(gateway)
            os.close(line)
