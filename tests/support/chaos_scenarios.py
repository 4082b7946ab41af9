"""What links and machines do to a run while it goes on; each holds for ``hold_s`` and then lifts."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from chaos_rig import Rig
from waiting import wait_until

HEARD_S = 120.0


def blackhole(rig: Rig, hold_s: float) -> None:
    """Everything is accepted and nothing arrives, either way."""
    _swallow(rig, hold_s, up=True, down=True)


def half_open_up(rig: Rig, hold_s: float) -> None:
    """Devices hear the centre and are not heard."""
    _swallow(rig, hold_s, up=True, down=False)


def half_open_down(rig: Rig, hold_s: float) -> None:
    """Records arrive, and no acknowledgement comes back."""
    _swallow(rig, hold_s, up=False, down=True)


def outage(rig: Rig, hold_s: float) -> None:
    """Links are cut and stay away."""
    for proxy in rig.proxies:
        proxy.refusing = True
        proxy.cut()
    time.sleep(hold_s)
    for proxy in rig.proxies:
        proxy.refusing = False


def delay(rig: Rig, hold_s: float) -> None:
    """2 s each way, so that every record is sent again before its acknowledgement can be there."""
    for way in _ways(rig):
        way.delay_s, way.jitter_s = 2.0, 0.2
    time.sleep(hold_s)
    for way in _ways(rig):
        way.delay_s = way.jitter_s = 0.0


def throttle(rig: Rig, hold_s: float) -> None:
    """2,000 bytes a second each way."""
    for way in _ways(rig):
        way.rate_bytes_per_s = 2_000
    time.sleep(hold_s)
    for way in _ways(rig):
        way.rate_bytes_per_s = None


def corrupt(rig: Rig, hold_s: float) -> None:
    """One bit in 100,000 is wrong, past all checks of the layers below."""
    for way in _ways(rig):
        way.bit_error_rate = 1e-5
    time.sleep(hold_s)
    for way in _ways(rig):
        way.bit_error_rate = 0.0


def slow_reader(rig: Rig, hold_s: float) -> None:
    """The centre stands still, with its connections open, and goes on."""
    rig.centre.signal(signal.SIGSTOP)
    time.sleep(hold_s)
    rig.centre.signal(signal.SIGCONT)


SCENARIOS: dict[str, Callable[[Rig, float], None]] = {
    scenario.__name__.replace("_", "-"): scenario
    for scenario in (
        blackhole,
        half_open_up,
        half_open_down,
        outage,
        delay,
        throttle,
        corrupt,
        slow_reader,
    )
}


def strike(rig: Rig, scenario: str, hold_s: float) -> None:
    """Let a scenario begin when every device has been heard; returns when it is over."""
    wait_until(lambda: rig.devices_seen() == rig.world.n_devices, HEARD_S, "every device's first record")
    SCENARIOS[scenario](rig, hold_s)


def _ways(rig: Rig) -> list:
    return [way for both in rig.ways() for way in both]


def _swallow(rig: Rig, hold_s: float, up: bool, down: bool) -> None:
    for way, back in rig.ways():
        way.swallow, back.swallow = up, down
    time.sleep(hold_s)
    for way, back in rig.ways():
        way.swallow = back.swallow = False
