"""Wall clocks that jump while records are on their way: nothing is ordered, kept or waited for by them."""

import os
import time
from pathlib import Path

import chaos_rig
import pytest
from chaos_rig import Rig
from chaos_tally import whole
from waiting import wait_until

pytestmark = pytest.mark.slow

CLOCK = Path(chaos_rig.__file__).with_name("clock")
EVENTS = 25
DAY_S = 86_400
TIMEOUT_S = 60.0


@pytest.fixture
def clocks(tmp_path, monkeypatch):
    """Starts a process with a clock of its own, ``clocks(name, start)``, and gives the clock's file."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(CLOCK), os.environ.get("PYTHONPATH", os.getcwd())]))

    def started(name, start):
        file = tmp_path / f"{name}.clock"
        if not file.exists():
            file.write_text("0")
        monkeypatch.setenv("EPIC_CLOCK_FILE", str(file))
        start()
        return file

    return started


def set_clock(file, seconds):
    """At once: a process must not read half of it."""
    aside = file.with_suffix(".new")
    aside.write_text(str(seconds))
    aside.rename(file)


def test_a_clock_that_is_set_loses_and_doubles_nothing(tmp_path, clocks):
    """The centre's and one device's go back by a day, another device's forward."""
    with Rig(tmp_path, EVENTS, interval_s=0.1) as rig:
        centre = clocks("centre", rig.start_centre)
        rig.centre.wait_for("ready", TIMEOUT_S)
        devices = [clocks(f"device{n}", lambda n=n: rig.start_device(n)) for n in range(5)]
        wait_until(lambda: rig.devices_seen() == 5, TIMEOUT_S, "every device")
        set_clock(centre, -DAY_S)
        set_clock(devices[0], -DAY_S)
        set_clock(devices[1], DAY_S)
        # One starts again with its clock as it is now.
        rig.device(1).kill()
        clocks("device1", lambda: rig.start_device(1))
        found = rig.finish()
        away_us = [
            max(abs(row["timestamp_us"] - time.time_ns() // 1000) for row in process.entries())
            for process in (rig.centre, rig.device(0), rig.device(1))
        ]
    assert min(away_us) > 1e6 * DAY_S / 2, "the clocks were set"
    assert found == whole(EVENTS)
