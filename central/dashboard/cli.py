"""``epic central page``: the page over the store of a centre, whether that runs or not."""

from __future__ import annotations

import signal
import threading
from typing import Annotated

import typer

from central.config import load_config, with_page
from central.options import ConfigOption

ADDRESS = "127.0.0.1:8080"


def page(
    config: ConfigOption,
    listen: Annotated[
        str | None, typer.Option(help=f"HOST:PORT; default: central.page_listen of the file, else {ADDRESS}.")
    ] = None,
) -> None:
    """Serve the page of the stored maps, without a running centre; Ctrl-C ends it."""
    settings = load_config(config)
    central = settings.central
    if listen:
        central = with_page(config, central, listen)
    from central.dashboard.archive import Archive
    from central.dashboard.server import PageServer, check_free
    from firmware_py.runtime.log import Log

    Archive(central.data_dir).close()
    address = central.page_listen or ADDRESS
    # Another centre's page would be looked at instead.
    check_free(address)
    server = PageServer(central, address, Log(None), None, typer.echo, settings.export_line())
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    serving = threading.Thread(target=server.run, args=(stop,), name="page")
    serving.start()
    serving.join()
