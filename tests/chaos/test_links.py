"""Links that swallow, stall, crawl and flip bits: every record arrives once, and whole."""

import pytest
from chaos_rig import Rig
from chaos_scenarios import SCENARIOS, strike
from chaos_tally import Tally

pytestmark = pytest.mark.slow

EVENTS = 40


def whole(events: int) -> Tally:
    return Tally(5 * events, lost=0, duplicated=0, corrupted=0, reused=0, complete_maps=events)


@pytest.mark.parametrize("link", ["zmq-curve", "tcp-mac"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_nothing_is_lost_or_doubled(tmp_path, scenario, link):
    with Rig(tmp_path, EVENTS, link, interval_s=0.05) as rig:
        rig.start()
        strike(rig, scenario, hold_s=1.0)
        assert rig.finish() == whole(EVENTS)


@pytest.mark.parametrize("link", ["tcp", "tcp-mac", "serial", "serial-mac"])
def test_wrong_bits_are_never_accepted(tmp_path, link):
    """Bits wrong from the first byte on, at 1e-4: one record in eleven."""
    with Rig(tmp_path, EVENTS, link) as rig:
        for up, down in rig.ways():
            up.bit_error_rate = down.bit_error_rate = 1e-4
        rig.start()
        assert rig.finish() == whole(EVENTS)
