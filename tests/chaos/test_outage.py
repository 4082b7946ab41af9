"""The centre away for longer than a spool holds: what is dropped is counted, all else arrives."""

import numpy as np
import pytest
from chaos_rig import Rig
from chaos_tally import Tally
from waiting import wait_until

pytestmark = pytest.mark.slow

TIMEOUT_S = 120.0


def recordings(rig, device, events):
    own = rig.world.bundle.manifest["acquisition"]["device_receivers"][device]
    for event in events:
        hidden = rig.incoming(device) / f".shot-{event}.npy"
        np.save(hidden, rig.world.gathers[event - 1][:, :, own])
        hidden.rename(hidden.with_name(f"shot-{event}.npy"))


def test_a_spool_that_overflows_drops_its_oldest_and_counts_them(tmp_path):
    events, kept, devices = 30, 20, range(5)
    with Rig(tmp_path, events, spool_records=kept, replay=False) as rig:
        for device in devices:
            recordings(rig, device, range(1, events + 1))
            rig.start_device(device)
        taken = [rig.incoming(device) / "sent" / f"shot-{events}.npy" for device in devices]
        wait_until(lambda: all(path.exists() for path in taken), TIMEOUT_S, "all recordings")
        rig.start_centre()
        wait_until(lambda: rig.journalled() == 5 * kept, TIMEOUT_S, "what the spools held")
        for device in devices:
            rig.device(device).end()
        assert [rig.device(device).entries()[-1]["dropped"] for device in devices] == 5 * [events - kept]
        rig.centre.end()
        found = rig.tally()
    assert found == Tally(
        5 * kept, lost=5 * (events - kept), duplicated=0, corrupted=0, reused=0, complete_maps=kept
    )
