"""Recordings on request while links fail and both sides are killed: no partial recording is ever used.

Each seed reproduces one history: messages are lost, repeated and reordered, the centre is killed before and after it
writes, devices restart, and one recording is coded again by another version.
"""

import random
import time
from contextlib import closing

import numpy as np
import pytest
from chaos_rig import Rig
from chaos_world import World, released_world
from fake_decoder import SURVEY
from fetch_rig import FetchRig, put_event, samples_of
from waiting import wait_until

from central.recordings.gathers import assemble
from central.recordings.store import KEPT, OPEN, RecordingError, RecordingStore
from central.storage.journal import Journal
from central.storage.map_store import Store

EVENTS = (3, 4)
STEPS = 400


class Chaos:
    """A rig whose links and sides fail at random, by ``seed``."""

    def __init__(self, data_dir, seed):
        self.rng = random.Random(seed)
        for event in EVENTS:
            put_event(data_dir, event)
        self.rig = FetchRig(data_dir, devices=range(3))
        self.rig.pass_on = lambda record: self.rng.random() > 0.3
        # Answers that are still on their way, by device.
        self.late = {device: [] for device in self.rig.devices}
        for event in EVENTS:
            self.rig.store.ask(event, None, [0, 1, 2])

    def step(self):
        rng, rig = self.rng, self.rig
        side = rig.devices[rng.choice(list(rig.devices))]
        what = rng.random()
        if what < 0.02:
            rig.start_centre()
        elif what < 0.04:
            side.restart()
            self.late[side.device].clear()
        elif what < 0.05:
            # Another version of the device's software codes the same samples to other bytes.
            side.sender._receivers = tuple(reversed(side.sender._receivers))
            side.sender._find = lambda event, time_us: samples_of(event, side.device)[:, :, ::-1]
            side.sender._drop()
        elif what < 0.15:
            rig.write()
        else:
            rig.settle(side)
            self.turn(side)
        rig.now_s += rng.choice((0.0, 0.0, 0.5, 3.0, 20.0))
        for transfers in rig.fetching._transfers.values():
            for one in transfers.values():
                # The rig's clock is not the wall's: a device counts as at work for as long as the test says.
                if rng.random() < 0.1:
                    one.last_seen_s = float("-inf")

    def turn(self, side):
        """Take one pass of a device whose answers may come late, twice or never."""
        rng, rig = self.rng, self.rig
        record = side.sender.poll(rig.now_s) or (side.hello() if rng.random() < 0.3 else None)
        if record is not None and rig.pass_on(record):
            for _ in range(rng.choice((1, 1, 1, 2))):
                self.late[side.device] += rig.hear(side, record)
        waiting = self.late[side.device]
        if rng.random() < 0.2:
            rng.shuffle(waiting)
        while waiting and rng.random() < 0.9:
            answer = waiting.pop(0)
            if rig.pass_on(answer):
                side.sender.handle(answer, rig.now_s)

    def check(self):
        """Assert that kept recordings are complete and exact, and that no other samples are used."""
        for event in EVENTS:
            states = {r.device: r.state for r in self.rig.store.requests(1, event)}
            assert set(states.values()) <= {*OPEN, KEPT}, states
            try:
                gather = assemble(self.rig.data_dir, event)
            except RecordingError:
                assert KEPT not in states.values()
                continue
            for device, state in states.items():
                receivers = list(SURVEY.device_receivers[device])
                if state == KEPT:
                    expected = samples_of(event, device)
                    np.testing.assert_array_equal(gather.samples[:, :, receivers], expected)
                else:
                    assert not gather.live[receivers].any()

    def mend(self):
        """Let nothing fail from now on, and finish all requests."""
        rig = self.rig
        rig.pass_on = lambda record: True
        rig.start_centre()
        for side in rig.devices.values():
            side.restart()
        rig.run(passes=5000, hello_every=5)


@pytest.fixture
def data_dir(tmp_path):
    """An empty store."""
    Journal(tmp_path / "data").close()
    return tmp_path / "data"


@pytest.mark.parametrize("seed", range(4))
def test_whatever_fails_a_recording_is_exact_or_not_there(data_dir, seed):
    chaos = Chaos(data_dir, seed)
    with chaos.rig:
        for number in range(STEPS):
            chaos.step()
            if number % 50 == 49:
                chaos.check()
        chaos.mend()
        chaos.check()
        assert {r.state for r in chaos.rig.store.requests()} == {KEPT}
        with closing(Store(data_dir)) as maps:
            assert [stored.event for stored in maps.newest()] == list(EVENTS), "the maps are as they were"


@pytest.mark.slow
@pytest.mark.parametrize("link", ["zmq-curve", "tcp-mac", "serial-mac"])
def test_recordings_arrive_over_every_link_while_processes_are_killed(tmp_path, link):
    """Real processes with keys; each recording is whole numbers, as of a digitiser, and takes some 20 kB."""
    released = released_world(tmp_path)
    peaks = np.abs(released.gathers[:2]).max(axis=(1, 2, 3), keepdims=True)
    gathers = np.rint(released.gathers[:2] / peaks * 32767).astype(np.float32)
    world = World(released.bundle, None, gathers)
    rng = random.Random(link)
    with Rig(tmp_path, 2, link, world=world, replay=False, baud=460_800) as rig:
        for device in range(world.n_devices):
            config = tmp_path / f"device{device}.toml"
            config.write_text(config.read_text() + "[health]\ninterval_s = 1\n")
            for event, gather in enumerate(gathers, start=1):
                np.save(rig.incoming(device) / f"shot-{event}.npy", gather)
        rig.start()
        wait_until(lambda: rig._maps() == 2, timeout_s=120.0)
        with closing(RecordingStore(rig.data_dir)) as store:
            for event in (1, 2):
                store.ask(event, None)
            for _ in range(4):
                time.sleep(rng.uniform(0.3, 1.5))
                if rng.random() < 0.5:
                    rig.centre.kill()
                    rig.start_centre()
                else:
                    device = rng.randrange(world.n_devices)
                    rig.device(device).kill()
                    rig.start_device(device)
            wait_until(lambda: not store.requests(only_open=True), timeout_s=240.0)
            assert {(request.state, request.reason) for request in store.requests()} == {(KEPT, "")}
        for event, gather in enumerate(gathers, start=1):
            np.testing.assert_array_equal(assemble(rig.data_dir, event).samples, gather)
