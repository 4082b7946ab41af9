"""Device of a baseline: replay its part of the gathers over the same link as EPIC's devices.

    python -m testbed.comparison.baseline_device CONFIG.json

It sends each event once, without a spool on disk or acknowledgements. A field device has to do more, so this favours
the baseline.
"""

from __future__ import annotations

import fcntl
import json
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from firmware_py.links.keys import read_key_folder
from firmware_py.links.zeromq import ZmqLink
from firmware_py.runtime.log import Log, now_us
from testbed.comparison.baselines import device_encoder

# Header: device, event
HEADER = struct.Struct("<HI")


@dataclass(frozen=True)
class BaselineDevice:
    """Configuration of a device process. Events ``first`` to ``last`` are gathers ``first - 1`` to ``last - 1``.

    ``keys`` is the folder that ``epic keys new`` made for the device, or None.
    """

    scheme: str
    device: int
    receivers: list[int]
    gathers: str
    first: int
    last: int
    interval_s: float
    endpoint: str
    keys: str | None
    folder: str
    log: str


def run(config: BaselineDevice) -> None:
    """Send every event, wait until all are received, then exit."""
    encode = device_encoder(config.scheme, Path(config.folder))
    gathers = np.load(config.gathers, mmap_mode="r")
    log = Log(Path(config.log))
    link = ZmqLink(config.endpoint, read_key_folder(Path(config.keys)) if config.keys else None)
    # Warm-up: the interpreter's first call allocates memory.
    encode(np.array(gathers[config.first - 1][:, :, config.receivers]))
    due_s = time.monotonic()
    for event in range(config.first, config.last + 1):
        time.sleep(max(due_s - time.monotonic(), 0.0))
        due_s += config.interval_s
        part = np.array(gathers[event - 1][:, :, config.receivers])
        recorded_us = now_us()
        with _turn(Path(config.folder)):
            started_s = time.perf_counter()
            payload = encode(part)
            encode_s = time.perf_counter() - started_s
        ready_us = now_us()
        message = HEADER.pack(config.device, event) + payload
        sent_us = now_us()
        while not link.send(message):
            link.receive(0.005)
            sent_us = now_us()
        log.write(
            "sent",
            event=event,
            recorded_us=recorded_us,
            ready_us=ready_us,
            sent_us=sent_us,
            encode_s=encode_s,
            bytes=len(message),
        )
    left = config.last - config.first + 1
    while left:
        left -= link.receive(0.5) is not None
    log.write("statistics", **vars(link.statistics))
    link.close()
    log.close()


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Let one device compute at a time: five boards have a processor each, this machine has two cores."""
    with (folder / "turn.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    run(BaselineDevice(**json.loads(Path(sys.argv[1]).read_text())))
