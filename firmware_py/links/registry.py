"""Register the kinds of link. A new one is a file beside this with its ``Link``, and a line in ``LINKS``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from firmware_py.links.base import Link
from firmware_py.links.keys import CurveKeys, read_curve_keys, read_secret
from firmware_py.links.port import SerialPort, TcpPort, split_endpoint
from firmware_py.links.stream import FrameAuthenticator, StreamLink
from firmware_py.links.zeromq import ZmqLink
from firmware_py.protocol.frame_authenticator import DOWNLINK, UPLINK, Crc, Mac


@dataclass(frozen=True)
class LinkSection:
    """Link to the centre; unacknowledged records are sent again after ``resend_s``, with back-off.

    ``kind`` is zmq (``endpoint`` tcp://host:port), tcp (host:port of a gateway) or serial (a port such as /dev/ttyACM0,
    at ``baud``). The key files are made by ``epic keys new``. ZeroMQ needs three, which encrypt the link and
    authenticate both sides; tcp and serial need ``secret``, which authenticates each record. ``insecure`` uses no keys,
    for trials.
    """

    endpoint: str
    kind: str = "zmq"
    resend_s: float = 2.0
    window: int = 16
    baud: int = 115_200
    insecure: bool = False
    secret: Path | None = None
    server_key: Path | None = None
    public_key: Path | None = None
    secret_key: Path | None = None


def read_keys(link: LinkSection) -> None:
    """Read every key that the link names, and open nothing. Raises ``LinkError``."""
    _curve_keys(link)
    if link.secret:
        read_secret(link.secret)


def _curve_keys(link: LinkSection) -> CurveKeys | None:
    if link.server_key and link.public_key and link.secret_key:
        return read_curve_keys(link.server_key, link.public_key, link.secret_key)
    return None


def _open_zmq(link: LinkSection) -> Link:
    return ZmqLink(link.endpoint, _curve_keys(link))


def _open_tcp(link: LinkSection) -> Link:
    split_endpoint(link.endpoint)
    return StreamLink(partial(TcpPort.connect, link.endpoint), *_authenticators(link))


def _open_serial(link: LinkSection) -> Link:
    port = partial(SerialPort, link.endpoint, link.baud)
    # 8N1: ten bits a byte.
    return StreamLink(port, *_authenticators(link), bytes_per_s=link.baud / 10)


def _authenticators(link: LinkSection) -> tuple[FrameAuthenticator, FrameAuthenticator]:
    """Return the authenticators of both directions: MACs with a secret, checksums without."""
    if not link.secret:
        return Crc(), Crc()
    secret = read_secret(link.secret)
    return Mac(secret, UPLINK), Mac(secret, DOWNLINK)


LINKS: dict[str, Callable[[LinkSection], Link]] = {
    "zmq": _open_zmq,
    "tcp": _open_tcp,
    "serial": _open_serial,
}
