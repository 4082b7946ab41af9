"""From ``device.json`` to a running device; a board's ``main.py`` calls ``start()`` and nothing else."""

import time

import machine

from firmware_py.micropython.bundle import load_bundle
from firmware_py.micropython.config import load_config
from firmware_py.micropython.errors import SetupError
from firmware_py.micropython.runtime import reserve
from firmware_py.micropython.safe_mode import FAILED_STARTS, TRY_AGAIN_S
from firmware_py.micropython.slots import Slots

# Watchdog timeout, longer than one encoder run; a stalled loop is restarted.
WATCHDOG_MS = 8000
# Delay before a restart, so that a person can stop a repeatedly failing device at the prompt.
BEFORE_RESET_MS = 5000

# The device and the error line with which it stopped, for `epic board status` at the prompt.
running = None
stopped = None


def start(path="device.json"):
    """Run until power-off. A configuration error is printed and returns to the prompt; other errors restart."""
    global running, stopped
    watchdog = Watchdog()
    try:
        try:
            device, safe = build(load_config(path), watchdog.feed)
        except SetupError as error:
            stopped = "epic: %s" % error
            print(stopped)
            return
        running = device
        watchdog.start()
        if safe:
            print("epic: %d starts have failed; nothing is recorded for %d s" % (FAILED_STARTS, TRY_AGAIN_S))
            device.run(TRY_AGAIN_S)
            machine.reset()
        device.run()
    except Exception as error:
        # A card or digitiser that is not ready yet, failing flash or lack of memory: the records are in the spool, and
        # a restart may help.
        stopped = "epic: %r; starting anew" % error
        print(stopped)
        if running:
            running.failed(error)
        time.sleep_ms(BEFORE_RESET_MS)
        machine.reset()


class Watchdog:
    """The board's watchdog, which cannot be stopped; started once the configuration is valid."""

    def __init__(self):
        self._timer = None

    def start(self):
        self._timer = machine.WDT(timeout=WATCHDOG_MS)

    def feed(self):
        if self._timer:
            self._timer.feed()


def build(config, feed):
    """The ``Device`` of a configuration, and whether it is in safe mode.

    Raises:
        SetupError: The configuration, or something that it names, is wrong.
        OSError: The hardware's errors.
    """
    slots = Slots(config["bundle"])
    slots.begin()
    bundle = slots.load(load_bundle, slots.folder)
    # The largest buffers and then the modules, while the heap is whole.
    memory = slots.load(reserve, bundle)
    from firmware_py.micropython.assembly import assemble

    return assemble(config, feed, slots, bundle, memory)
