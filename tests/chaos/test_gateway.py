"""A gateway in a process of its own, with CURVE to the centre: real devices at the far ends of serial lines."""

import time

import pytest
from chaos_rig import Rig
from chaos_tally import whole
from waiting import wait_until

from central.security.keys import allow, new_keys, revoke
from testbed.processes import Process

pytestmark = pytest.mark.slow

EVENTS = 20
NAME = "gateway-hut"


class GatewayRig(Rig):
    """The centre has no lines; a gateway process serves all five of them."""

    def _write_centre(self, port, gateway_port, baud):
        super()._write_centre(port, gateway_port, baud)
        new_keys(self.folder / "keys", NAME)
        allow(self.folder / "keys", NAME)
        path = self.folder / "central.toml"
        path.write_text(path.read_text().partition("[gateway]")[0])
        (self.folder / "gateway.toml").write_text(
            f'[gateway]\nname = "{NAME}"\ncentre = "tcp://127.0.0.1:{port}"\nkeys = "keys"\nbaud = {baud}\n'
            'log = "gateway.jsonl"\n'
        )

    def start_gateway(self) -> Process:
        lines = [argument for line in self.lines for argument in ("--port", line.centre_path)]
        config = str(self.folder / "gateway.toml")
        command = ["-m", "epic", "central", "gateway", "--config", config, *lines]
        self._processes["gateway"] = Process("gateway", command, self.folder)
        return self._processes["gateway"]


def test_a_gateway_killed_and_started_again_loses_nothing(tmp_path):
    with GatewayRig(tmp_path, EVENTS, "serial-mac", interval_s=0.1) as rig:
        gateway = rig.start_gateway()
        rig.start()
        for share in (4, 2):
            wait_until(lambda s=share: rig.journalled() > 5 * EVENTS // s - 15, 120, "records")
            gateway.kill()
            gateway = rig.start_gateway()
        assert rig.finish() == whole(EVENTS)
        gateway.end()
    assert gateway.exit_code == 0
    assert len(gateway.entries("line_open")) >= 15
    assert gateway.entries("stopped")


def test_a_gateway_whose_key_is_withdrawn_is_heard_no_more(tmp_path):
    """Nothing is lost: allowed again, it delivers the records that the devices kept."""
    with GatewayRig(tmp_path, EVENTS, "serial-mac", interval_s=0.1) as rig:
        rig.start_gateway()
        rig.start()
        wait_until(lambda: rig.journalled() > 15, 120, "records")
        revoke(rig.folder / "keys", NAME)

        def silent() -> bool:
            before = rig.journalled()
            time.sleep(1.5)
            return rig.journalled() == before

        wait_until(silent, 60, "silence")
        assert rig.journalled() < 5 * EVENTS
        allow(rig.folder / "keys", NAME)
        assert rig.finish() == whole(EVENTS)


def test_on_a_slow_line_nothing_is_sent_twice(tmp_path):
    """12 of these records take 11 s at 600 baud: a record that waits for the line is not taken for lost after 8 s.

    As slow as that, because a busy machine may keep a device, the line or the gateway from their turn for seconds.
    """
    events = 12
    with GatewayRig(tmp_path, events, "serial-mac", resend_s=8.0, baud=600) as rig:
        gateway = rig.start_gateway()
        wait_until(lambda: len(gateway.entries("line_open")) == 5, 60, "five ports")
        rig.start()
        assert rig.finish() == whole(events)
        sent = [row["again"] for device in range(5) for row in rig.device(device).entries("sent")]
    assert sent == [False] * (5 * events)
