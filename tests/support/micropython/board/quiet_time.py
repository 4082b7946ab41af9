"""The interpreter's own time, but that a sleep does not burn the core. ``install`` before anything imports time."""

import sys
from time import *  # noqa: F403

from node import sleep_ms  # noqa: F401


def install():
    sys.modules["time"] = sys.modules[__name__]
