"""An update over a serial line at 115200 baud with wrong bits, to a node at work."""

import threading

import pytest
from far_ends import SECRET
from releases import FakeRollout, make_release, sign, write_public_key
from tiny import ENCODER
from waiting import wait_until

from firmware_py.inference.bundle import load_bundle
from firmware_py.links.port import SerialPort
from firmware_py.links.stream import StreamLink
from firmware_py.protocol import packet, repeater
from firmware_py.protocol.frame_authenticator import DOWNLINK, UPLINK, Mac
from firmware_py.runtime.config import (
    LinkSection,
    NodeConfig,
    NodeSection,
    RunSection,
    SourceSection,
    UpdateSection,
)
from firmware_py.runtime.run import run_device
from testbed.emulation.serial_emulator import EmulatedSerial

pytestmark = pytest.mark.slow


@pytest.fixture
def line():
    with EmulatedSerial(115_200, bit_error_rate=5e-5) as one:
        yield one


def test_an_update_over_a_noisy_serial_line(tmp_path, line, monkeypatch):
    monkeypatch.setattr(repeater, "RETRY_MIN_S", 0.3)
    make_release(tmp_path / "old", "old", ENCODER)
    secret = tmp_path / "device.mac"
    secret.write_text(SECRET.hex())
    secret.chmod(0o600)
    config = NodeConfig(
        NodeSection(1, tmp_path / "old", state_dir=tmp_path / "state"),
        LinkSection(line.device_path, "serial", secret=secret),
        SourceSection("folder", path=tmp_path),
        RunSection(log=tmp_path / "node.jsonl"),
        UpdateSection(write_public_key(tmp_path / "signing.public")),
    )
    rollout = FakeRollout(
        sign(make_release(tmp_path / "new", files={"more.bin": bytes(range(256)) * 60}), 7), 7
    )
    nodes = []
    device = threading.Thread(target=run_device, args=(config, nodes.append))
    device.start()
    far = StreamLink(
        lambda: SerialPort(line.centre_path, 115_200), Mac(SECRET, DOWNLINK), Mac(SECRET, UPLINK)
    )

    def confirmed():
        # The device says how it is as well, which nobody answers here.
        if (data := far.receive(0.05)) and (record := packet.decode_record(data)).type == packet.UPDATE:
            for answer in rollout.answers(record):
                far.send(packet.encode_record(answer))
        return len(nodes) == 2 and any(r.version == 7 for r in rollout.reports)

    try:
        wait_until(confirmed, 120, "the update")
    finally:
        nodes[-1].stop()
        device.join()
        far.close()
    state = tmp_path / "state" / "slots"
    assert load_bundle(state / "current").model_hash == load_bundle(tmp_path / "new").model_hash
    assert all(want.length <= 1024 for want in rollout.wanted)
    assert len(rollout.wanted) > len({want.offset for want in rollout.wanted}), (
        "bits were wrong, and asked again"
    )
