"""What a slow line is given: never much more than it can carry before a record would be sent again."""

import pytest
from far_ends import SECRET
from waiting import wait_until

from firmware_py.links.port import SerialPort
from firmware_py.links.stream import StreamLink
from firmware_py.protocol.frame_authenticator import DOWNLINK, UPLINK, Mac
from testbed.emulation.serial_emulator import EmulatedSerial

pytestmark = pytest.mark.slow

BAUD = 9600
RECORD_BYTES = 38 + 128


def test_five_records_for_a_line_of_9600_baud_wait_with_their_sender():
    """A pseudo-terminal would take all five at once, as adapters do, and say that nothing waits."""
    with EmulatedSerial(BAUD) as line:
        seals = Mac(SECRET, UPLINK), Mac(SECRET, DOWNLINK)
        near = StreamLink(lambda: SerialPort(line.device_path, BAUD), *seals, bytes_per_s=BAUD / 10)
        far = StreamLink(lambda: SerialPort(line.centre_path, BAUD), *reversed(seals), bytes_per_s=BAUD / 10)
        assert far.receive(0.0) is None
        records = [bytes([n]) * RECORD_BYTES for n in range(1, 6)]
        waiting = list(records)
        while near.send(waiting[0]):
            waiting.pop(0)
        assert len(waiting) >= 2, "half a second is two records and a half"
        arrived = []

        def done() -> bool:
            if waiting and near.send(waiting[0]):
                waiting.pop(0)
            if (record := far.receive(0.01)) is not None:
                arrived.append(record)
            return len(arrived) == len(records)

        wait_until(done, 60, "five records")
        assert arrived == records
        near.close()
        far.close()


def test_an_empty_line_takes_any_record():
    with EmulatedSerial(BAUD) as line:
        seals = Mac(SECRET, UPLINK), Mac(SECRET, DOWNLINK)
        near = StreamLink(lambda: SerialPort(line.device_path, BAUD), *seals, bytes_per_s=BAUD / 10)
        # (Once the zero that begins a connection has left.)
        wait_until(lambda: near.send(bytes(2000)), what="two seconds of line taken")
        assert not near.send(b"another")
        near.close()
