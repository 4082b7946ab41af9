"""What the centre's own processes do first: they end with it, however it ends, and leave Ctrl-C to it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def live_with_parent() -> None:
    """For the main thread of a process that ``multiprocessing`` started.

    A pool's worker holds both ends of the queue that it waits at: of a parent that was killed it hears nothing there.
    Ctrl-C goes to every process of a terminal; the parent ends its own when it has stored what they draw.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
