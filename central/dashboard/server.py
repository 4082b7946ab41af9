"""Run the page's HTTP server, on a thread of the centre or alone over a store."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from central.config import CentralSection
from central.dashboard.app import Site, build_app
from central.dashboard.feed import Feed
from central.dashboard.http_server import bounded_server, listen
from central.dashboard.metrics import RuntimeMetrics
from central.dashboard.totals import Totals
from central.export.line import Line
from central.storage.database import StoreError, is_claimed
from firmware_py.links.port import split_endpoint
from firmware_py.runtime.log import Log

AGAIN_S = 10.0


class PageServer:
    """Server of the page at ``central.page_listen``; its faults never stop the centre."""

    def __init__(
        self,
        central: CentralSection,
        address: str,
        log: Log,
        live: RuntimeMetrics | None,
        announce: Callable[[str], None] = lambda line: None,
        line: Line | None = None,
    ) -> None:
        """``live`` has the metrics of the centre in this process, if there is one.

        ``announce`` gets one line with the page's address, or why there is none. ``line`` adds coordinates to
        downloads. Raises ``ConfigError`` for a token file.
        """
        self._site = Site(
            central.data_dir,
            central.listen,
            keyed=central.keys is not None,
            running=(lambda: True) if live else partial(_is_running, central.data_dir),
            line=line,
        )
        self._address = address
        self._token = central.read_page_token()
        self._log = log
        self._live = live
        self._announce = announce
        self._complaint = ""

    def run(self, stop: threading.Event) -> None:
        """Serve until ``stop``; restart the server after a pause if it fails or cannot listen."""
        while not stop.is_set():
            try:
                with _listen(self._address) as listener:
                    asyncio.run(self._serve(listener, stop))
            except Exception as error:
                # Log each reason once: a port may be in use for weeks.
                if (complaint := str(error) or repr(error)) != self._complaint:
                    self._complaint = complaint
                    self._log.write("page_failed", address=self._address, reason=complaint)
                    self._announce(f"no page: {complaint}")
                stop.wait(AGAIN_S)

    async def _serve(self, listener: socket.socket, stop: threading.Event) -> None:
        totals = Totals()
        feed = Feed(self._site.data_dir, totals, self._log, self._site.running)
        app = build_app(self._site, self._token, feed, totals, self._log, self._live)
        server = bounded_server(app)
        ending = threading.Event()
        watching = threading.Thread(target=feed.watch, args=(ending.wait,), name="page-watch", daemon=True)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        watching.start()
        try:
            host, _ = split_endpoint(self._address)
            address = f"http://{host}:{listener.getsockname()[1]}/"
            self._log.write("page", address=address)
            self._announce(f"page at {address}")
            self._complaint = ""
            while not stop.is_set() and not serving.done():
                await asyncio.sleep(0.1)
        finally:
            ending.set()
            feed.close()
            server.should_exit = True
            await serving
            await asyncio.to_thread(watching.join)


def _is_running(data_dir: Path) -> bool:
    """Return True if a centre in another process is running on ``data_dir``."""
    try:
        return is_claimed(data_dir)
    except StoreError:
        return False


def check_free(address: str) -> None:
    """Raises ``OSError`` where the page cannot listen at ``address``."""
    _listen(address).close()


def _listen(address: str) -> socket.socket:
    try:
        return listen(address)
    except OSError as error:
        raise OSError(f"{address}: cannot listen there ({error.strerror}); is another page on it?") from None
