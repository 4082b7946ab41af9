"""``epic central gateway``: devices on serial ports and plain TCP, served beside the centre or away from it."""

from __future__ import annotations

import signal
import threading
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from central.config import GatewaySection, load_gateway
from central.security.keys import KeyRing, KeysError
from firmware_py.links.base import LinkError
from firmware_py.links.keys import CurveKeys, read_key_folder
from firmware_py.runtime.log import Log


def gateway(
    config: Annotated[Path, typer.Option("--config", help="gateway.toml, or the centre's central.toml")],
    port: Annotated[
        list[str] | None, typer.Option(help="Serial port, such as /dev/ttyACM0; repeat for more.")
    ] = None,
    tcp: Annotated[str | None, typer.Option(help="Where devices connect: host:port.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Run without keys, on loopback only.")] = False,
) -> None:
    """Serve devices on serial ports and plain TCP; Ctrl-C ends it."""
    section = load_gateway(config, port or [], tcp, insecure)
    log = Log(section.log)
    curve, ring = _keys(section, log)
    import zmq

    from central.gateway.gateway import Gateway
    from central.gateway.sessions import FrameAuthenticators
    from firmware_py.links.zeromq import ZmqLink

    assert section.centre
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    context = zmq.Context()
    try:
        connect = partial(ZmqLink, section.centre, curve, context)
        served = Gateway(section, FrameAuthenticators(ring), connect, log)
        log.write("ready", name=section.name, centre=section.centre)
        if section.log:
            typer.echo(f"{section.name} serves {section.centre}, log in {section.log}; Ctrl-C ends it")
        served.run(stop.is_set)
        log.write("stopped")
    finally:
        context.term()
        log.close()


def _keys(section: GatewaySection, log: Log) -> tuple[CurveKeys | None, KeyRing | None]:
    """Return the gateway's own keys and its devices' MAC secrets; (None, None) if insecure."""
    if section.keys is None:
        return None, None
    try:
        curve = read_key_folder(section.keys / section.name)
    except LinkError as error:
        raise KeysError(f"{error}; make it at the centre with: epic keys new {section.name}") from None
    return curve, KeyRing(section.keys, log)
