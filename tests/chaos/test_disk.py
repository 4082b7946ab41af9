"""A disk that fills up, a device's or the centre's: nothing acknowledged is lost, and with room all goes on."""

import contextlib

import pytest
from chaos_rig import Rig
from chaos_tally import whole
from small_disk import small_disk
from waiting import wait_until

pytestmark = pytest.mark.slow

EVENTS = 40
TIMEOUT_S = 60.0


class Disk:
    """A small file system at ``path`` that can be filled to its last byte."""

    def __init__(self, path):
        self.path = path
        self._ballast = path / "ballast"

    def fill(self):
        with contextlib.suppress(OSError), self._ballast.open("ab", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    def make_room(self):
        self._ballast.unlink()


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    path.mkdir()
    with small_disk(path, "16m"):
        yield Disk(path)


def test_a_centre_without_room_acknowledges_nothing_and_goes_on(tmp_path, disk):
    with Rig(tmp_path, EVENTS, interval_s=0.1, centre_dir=disk.path / "central") as rig:
        rig.start()
        wait_until(lambda: rig.devices_seen() == 5, TIMEOUT_S, "every device")
        disk.fill()
        rig.centre.wait_for("commit_failed", TIMEOUT_S)
        disk.make_room()
        assert rig.finish() == whole(EVENTS)
        assert rig.centre.exit_code == 0


def test_devices_without_room_end_and_say_why_and_a_restart_goes_on(tmp_path, disk):
    with Rig(tmp_path, EVENTS, interval_s=0.1, state_dir=disk.path) as rig:
        rig.start()
        wait_until(lambda: rig.devices_seen() == 5, TIMEOUT_S, "every device")
        disk.fill()
        for device in range(5):
            wait_until(
                lambda d=device: rig.device(d).exit_code == 2, TIMEOUT_S, f"the end of device {device}"
            )
            assert "make room on the disk" in rig.device(device).complaint()
        disk.make_room()
        for device in range(5):
            rig.start_device(device)
        assert rig.finish() == whole(EVENTS)
