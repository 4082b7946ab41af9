"""Centre of a baseline: receive the devices' data, predict a map when all are present or the deadline passes.

    python -m testbed.comparison.baseline_centre CONFIG.json

It uses the same keys as EPIC's centre. It writes nothing to disk before it acknowledges.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import zmq

from central.ingest.authentication import CurveAuthenticator
from firmware_py.links.zeromq import HEARTBEAT_MS, MAX_MESSAGE_BYTES
from firmware_py.runtime.log import Log, now_us
from testbed.comparison.baseline_device import HEADER
from testbed.comparison.baselines import central_decoder

POLL_MS = 20


@dataclass(frozen=True)
class BaselineCentre:
    """Configuration of the centre process. Maps are saved to ``maps``/EVENT.npy, ``(nz, nx)`` in [-1, 1]."""

    scheme: str
    n_devices: int
    listen: str
    keys: str | None
    folder: str
    deadline_s: float
    maps: str
    log: str


@dataclass
class _Event:
    first_s: float
    payloads: dict[int, bytes] = field(default_factory=dict)
    received_us: dict[int, int] = field(default_factory=dict)


def run(config: BaselineCentre) -> None:
    """Serve until SIGTERM or SIGINT."""
    decode = central_decoder(config.scheme, Path(config.folder))
    log = Log(Path(config.log))
    stopping: list[int] = []
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, lambda kind, _: stopping.append(kind))
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    router.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    router.setsockopt(zmq.LINGER, 500)
    guard = CurveAuthenticator(Path(config.keys)) if config.keys else None
    if guard:
        guard.protect(router, context)
    router.bind(config.listen)
    log.write("ready", endpoint=router.getsockopt_string(zmq.LAST_ENDPOINT))
    events: dict[int, _Event] = {}
    try:
        while not stopping:
            if router.poll(POLL_MS):
                peer, message = router.recv_multipart()
                device, number = HEADER.unpack_from(message)
                event = events.setdefault(number, _Event(time.monotonic()))
                event.payloads[device] = message[HEADER.size :]
                event.received_us[device] = now_us()
                router.send_multipart([peer, message[: HEADER.size]])
            for number, event in list(events.items()):
                late = time.monotonic() - event.first_s > config.deadline_s
                if len(event.payloads) == config.n_devices or late:
                    _finish(config, log, decode, number, events.pop(number))
    finally:
        router.close()
        if guard:
            guard.close()
        context.term()
        log.close()


def _finish(config: BaselineCentre, log: Log, decode, number: int, event: _Event) -> None:
    assembled_us = now_us()
    predicted = decode(event.payloads)
    decoded_us = now_us()
    np.save(Path(config.maps) / f"{number}.npy", predicted)
    log.write(
        "map",
        event=number,
        devices=sorted(event.payloads),
        received_us={str(device): at_us for device, at_us in event.received_us.items()},
        assembled_us=assembled_us,
        decoded_us=decoded_us,
    )


if __name__ == "__main__":
    run(BaselineCentre(**json.loads(Path(sys.argv[1]).read_text())))
