"""Cuts and SIGKILLs at random over a run, spread by how many records have arrived."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable

from chaos_rig import Rig

# Of the kills; the rest are devices'.
CENTRE_SHARE = 0.4
DOWN_MAX_S = 1.0
STALLED_S = 120.0


class Storm:
    """``cuts`` of devices' connections and ``kills`` of devices and the centre, in random order.

    A fault is due when its share of the run's records is in the journal. A cut counts when there was a
    connection to cut, a kill when the process was running; ``hits`` counts them by kind. Killed processes
    start again within a second, so that several are away at once.
    """

    def __init__(self, rig: Rig, cuts: int, kills: int, seed: int = 0) -> None:
        self.hits: Counter[str] = Counter()
        self._rig = rig
        self._rng = random.Random(seed)
        centre_kills = round(CENTRE_SHARE * kills)
        faults = (
            ["cut"] * cuts + ["device killed"] * (kills - centre_kills) + ["centre killed"] * centre_kills
        )
        self._rng.shuffle(faults)
        total = rig.world.n_devices * rig.events
        self._due = [(total * place // (len(faults) + 1), what) for place, what in enumerate(faults, start=1)]
        self._restarts: list[tuple[float, Callable[[], None]]] = []

    def run(self) -> None:
        """Until all faults have hit and everything is running again. Raises ``TimeoutError``."""
        before, stalled_s = -1, time.monotonic()
        while self._due or self._restarts:
            self._restart()
            arrived = self._rig.journalled()
            if arrived != before or self._restarts:
                before, stalled_s = arrived, time.monotonic()
            if self._due and arrived >= self._due[0][0] and self._hit(self._due[0][1]):
                self.hits[self._due.pop(0)[1]] += 1
            if time.monotonic() - stalled_s > STALLED_S:
                raise TimeoutError(
                    f"{arrived} records arrived, and no more for {STALLED_S:.0f} s; {len(self._due)} faults left"
                )
            time.sleep(0.01)

    def _restart(self) -> None:
        due = [entry for entry in self._restarts if entry[0] <= time.monotonic()]
        for entry in due:
            self._restarts.remove(entry)
            entry[1]()

    def _hit(self, what: str) -> bool:
        """Do it if there is anything to do it to."""
        rig, rng = self._rig, self._rng
        running = rig.running_devices()
        if not running:
            # Nothing is left to lose: a fault that found all devices gone is not one that was survived.
            if not self._restarts:
                raise TimeoutError(
                    f"the devices had sent all with {len(self._due)} faults left; slow them down"
                )
            return False
        device = rng.choice(running)
        later_s = time.monotonic() + rng.uniform(0.0, DOWN_MAX_S)
        if what == "cut":
            return rig.proxies[device].cut(fin=rng.random() < 0.5) > 0
        if what == "device killed":
            rig.device(device).kill()
            self._restarts.append((later_s, lambda: rig.start_device(device)))
        elif rig.centre.exit_code is None:
            rig.centre.kill()
            self._restarts.append((later_s, rig.start_centre))
        else:
            return False
        return True
