"""Connections cut and processes killed, devices and centre: every record once, and every map."""

import pytest
from chaos_rig import Rig
from chaos_storm import Storm
from chaos_tally import Tally

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("link", ["zmq-curve", "tcp-mac"])
def test_cuts_and_kills_lose_and_double_nothing(tmp_path, link):
    events, cuts, kills = 60, 10, 4
    with Rig(tmp_path, events, link, interval_s=0.1) as rig:
        rig.start()
        storm = Storm(rig, cuts, kills)
        storm.run()
        found = rig.finish()
    assert storm.hits == {"cut": cuts, "device killed": 2, "centre killed": 2}
    assert found == Tally(5 * events, lost=0, duplicated=0, corrupted=0, reused=0, complete_maps=events)
