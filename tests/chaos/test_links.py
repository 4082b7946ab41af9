"""Links that lose acknowledgements and flip bits: every record is stored once and undamaged.

Two of eight scenarios run here. Lost acknowledgements make devices send every record again; bit errors reach the
authenticator. ``benchmarks/robustness/chaos.py`` runs all scenarios on all links, and random cuts and kills.
"""

import pytest
from chaos_rig import Rig
from chaos_scenarios import strike
from chaos_tally import whole

pytestmark = pytest.mark.slow

EVENTS = 30


@pytest.mark.parametrize(("scenario", "link"), [("half-open-down", "zmq-curve"), ("corrupt", "tcp-mac")])
def test_nothing_is_lost_or_doubled(tmp_path, scenario, link):
    with Rig(tmp_path, EVENTS, link, interval_s=0.05) as rig:
        rig.start()
        strike(rig, scenario, hold_s=1.0)
        assert rig.finish() == whole(EVENTS)


def test_without_a_secret_wrong_bits_are_never_accepted(tmp_path):
    """A plain serial line with bits wrong from the first byte on, at 1e-4: one record in eleven."""
    with Rig(tmp_path, EVENTS, "serial") as rig:
        for up, down in rig.ways():
            up.bit_error_rate = down.bit_error_rate = 1e-4
        rig.start()
        assert rig.finish() == whole(EVENTS)
