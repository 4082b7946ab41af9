"""Set up the centre's child processes: they exit with the parent and ignore Ctrl-C."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def live_with_parent() -> None:
    """Exit when the parent exits; call it on the main thread of a ``multiprocessing`` child.

    A pool worker holds both ends of its queue, so it does not notice that its parent was killed. A terminal sends
    Ctrl-C to every process; the parent stops its children after it has stored their results.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
