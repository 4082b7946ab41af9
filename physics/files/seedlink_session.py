"""One connection to a SeedLink v3 server.

The session requests data by time. Packet numbers are not used to resume: a restarted server may reset them, so a number
can point to other data. The only exception is ringserver's whole ring, which is requested by the first number that the
server has just reported.

Protocol: SeedLink v3 as spoken by ringserver and SeisComP. A packet is an 8-byte header (``SL`` and a 24-bit number)
and one miniSEED record of any length.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import urlsplit
from xml.etree import ElementTree

from physics.errors import PhysicsError
from physics.files.times import parse_time_ns

DEFAULT_PORT = 18000
# Time-out of a connection and of each reply, seconds.
REPLY_S = 10.0
# Silence after which a server counts as lost, in spite of keep-alive requests, seconds.
SILENCE_S = 60.0
# Largest accepted list of streams and record, bytes.
MAX_INFO_BYTES = 64 << 20
MAX_RECORD_BYTES = 1 << 20
HEADER_BYTES = 8
# Bytes that include blockette 1000 of a miniSEED 2 record; also the shortest record.
PREFIX_BYTES = 128
MINISEED_3_HEADER_BYTES = 40
RECEIVE_BYTES = 1 << 18


class SeedLinkError(PhysicsError, RuntimeError):
    """The server cannot be reached, or does not speak SeedLink."""


class ConnectionLostError(SeedLinkError):
    """An established connection ended."""


@dataclass(frozen=True)
class Span:
    """Times of the first and the last sample of a channel on the server, ns since 1970."""

    begin_ns: int
    end_ns: int


def parse_address(server: str) -> tuple[str, int]:
    """Split ``HOST``, ``HOST:PORT``, ``[IPV6]:PORT``, a bare IPv6 address or ``seedlink://HOST:PORT``.

    Args:
        server: the address as the user wrote it.

    Returns:
        Host and port; the port defaults to 18000.

    Raises:
        SeedLinkError: the text is none of these.
    """
    expected = "expected HOST, HOST:PORT, [IPV6]:PORT or seedlink://HOST:PORT"
    text = server.strip()
    scheme, separator, rest = text.rpartition("://")
    if separator and scheme.lower() != "seedlink":
        raise SeedLinkError(f"{server}: {expected}, got the scheme {scheme}://")
    if rest.count(":") > 1 and "[" not in rest:
        rest = f"[{rest.rstrip('/')}]"
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise SeedLinkError(f"{server}: {expected} ({error})") from None
    if not host and rest.startswith(":"):
        host = "localhost"
    if not host or port == 0 or parts.username is not None or re.search(r"\s", host):
        raise SeedLinkError(f"{server}: {expected}")
    return host, DEFAULT_PORT if port is None else port


@dataclass
class SeedLinkSession:
    """A connection that streams some channels.

    Args:
        server: Address, see ``parse_address``.
        names: SEED ids, ``NETWORK.STATION.LOCATION.CHANNEL``.
        keepalive_s: Silence after which a keep-alive request is sent.
    """

    server: str
    names: list[str]
    keepalive_s: float
    # Data that the server holds of each channel; None if it does not report them.
    spans: dict[str, Span] | None = None
    refused: list[str] = field(default_factory=list)
    takes_time: bool = True
    # Number of ringserver's oldest packet; None if unknown.
    first_number: int | None = None
    _socket: socket.socket | None = None
    _buffer: bytearray = field(default_factory=bytearray)
    _data_at: float = 0.0
    _asked_at: float = 0.0
    _byte_at: float = 0.0
    _answered: bool = False

    def open(self, since_ns: int) -> None:
        """Connect and request all data from ``since_ns`` on (0: all that the server has), then live data.

        Raises:
            SeedLinkError: There is no answer, or not from a SeedLink server.
        """
        host, port = parse_address(self.server)
        self.close()
        try:
            self._socket = socket.create_connection((host, port), timeout=REPLY_S)
            self._negotiate(since_ns)
        except (OSError, ConnectionLostError) as error:
            self.close()
            said = f"no answer within {REPLY_S:g} s" if isinstance(error, TimeoutError) else str(error)
            raise SeedLinkError(
                f"{self.server}: {said}; expected a SeedLink server, check host and port"
            ) from None
        except SeedLinkError:
            self.close()
            raise
        self._data_at = self._asked_at = self._byte_at = time.monotonic()
        self._answered = False

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._buffer = None, bytearray()

    def idle_s(self) -> float:
        """Return the seconds without data; 0 unless the server has answered a keep-alive request since."""
        return time.monotonic() - self._data_at if self.is_open and self._answered else 0.0

    def receive(self, timeout_s: float) -> list[bytes]:
        """Return the miniSEED records received, waiting up to ``timeout_s`` for the first.

        Raises:
            ConnectionLostError: The connection ended, or the server is silent.
        """
        try:
            self._fill(timeout_s)
        except TimeoutError:
            self._check_alive()
        except OSError as error:
            raise ConnectionLostError(str(error)) from None
        records = []
        while packet := self._take_packet():
            header, payload = packet
            if header.startswith(b"SLINFO"):
                self._answered = True
            else:
                records.append(payload)
        if records:
            self._data_at, self._answered = time.monotonic(), False
        return records

    def _check_alive(self) -> None:
        now = time.monotonic()
        if now - self._byte_at > SILENCE_S:
            raise ConnectionLostError(f"not a byte for {SILENCE_S:g} s")
        if now - max(self._data_at, self._asked_at) > self.keepalive_s:
            self._asked_at = now
            try:
                self._send("INFO ID")
            except OSError as error:
                raise ConnectionLostError(str(error)) from None

    def _negotiate(self, since_ns: int) -> None:
        self._send("HELLO")
        software = self._line()
        if "seedlink" not in software.lower():
            raise SeedLinkError(
                f"{self.server}: expected a SeedLink server, got {software[:60]!r} in answer to HELLO; "
                "check host and port"
            )
        self._line()
        self.first_number = None
        self.spans = self._ask_spans("ringserver" in software.lower())
        # The command's resolution is one second.
        moment = datetime.fromtimestamp(since_ns // 1_000_000_000, UTC)
        start = moment.strftime("TIME %Y,%m,%d,%H,%M,%S")
        if since_ns == 0 and self.first_number is not None:
            # ringserver continues after the packet before the requested number; that packet must exist.
            start = f"DATA {(self.first_number + 1) & 0xFFFFFF:06X}"
        self.refused, self.takes_time = [], True
        accepted = 0
        for (network, station), selectors in _by_station(self.names).items():
            if not self._command(f"STATION {station} {network}"):
                self.refused.append(f"{network}.{station}")
                continue
            accepted += 1
            for selector in selectors:
                self._command(f"SELECT {selector}")
            if not (self.takes_time and self._command(start)):
                self.takes_time = False
                self._command("DATA")
        if not accepted:
            raise SeedLinkError(
                f"{self.server}: refuses every station ({', '.join(self.refused[:4])}); check the geometry's "
                "receivers"
            )
        self._send("END")

    def _ask_spans(self, has_one_ring: bool) -> dict[str, Span] | None:
        self._send("INFO STREAMS")
        document = bytearray()
        while True:
            if self._buffer.startswith(b"ERROR"):
                self._line()
                return None
            packet = self._take_packet()
            if packet is None:
                self._fill(REPLY_S)
                continue
            header, payload = packet
            document += _text_of(payload)
            if len(document) > MAX_INFO_BYTES:
                raise SeedLinkError(
                    f"{self.server}: its list of streams is longer than {MAX_INFO_BYTES} bytes"
                )
            if header[7:8] != b"*":
                numbers = re.findall(rb'begin_seq="(\d+)"', document)
                if has_one_ring and numbers:
                    self.first_number = min(map(int, numbers))
                return _read_spans(bytes(document))

    def _command(self, command: str) -> bool:
        self._send(command)
        return self._line().startswith("OK")

    def _send(self, command: str) -> None:
        assert self._socket is not None
        self._socket.settimeout(REPLY_S)
        self._socket.sendall(command.encode("ascii", "replace") + b"\r\n")

    def _line(self) -> str:
        while b"\r\n" not in self._buffer:
            if len(self._buffer) > 4096:
                raise SeedLinkError(f"{self.server}: expected a SeedLink server, got an endless line")
            self._fill(REPLY_S)
        line, _, rest = bytes(self._buffer).partition(b"\r\n")
        self._buffer = bytearray(rest)
        return line.decode("utf-8", "replace")

    def _fill(self, timeout_s: float) -> None:
        if self._socket is None:
            raise ConnectionLostError("not connected")
        self._socket.settimeout(max(timeout_s, 1e-3))
        more = self._socket.recv(RECEIVE_BYTES)
        if not more:
            raise ConnectionLostError("the server closed the connection")
        self._buffer += more
        self._byte_at = time.monotonic()

    def _take_packet(self) -> tuple[bytes, bytes] | None:
        """Remove one packet from the buffer and return it; None if it is incomplete."""
        buffer = self._buffer
        if buffer.startswith((b"END", b"ERROR")):
            raise ConnectionLostError("the server ended the stream")
        if len(buffer) < HEADER_BYTES + PREFIX_BYTES and not buffer.startswith(b"MS\x03", HEADER_BYTES):
            return None
        if len(buffer) < HEADER_BYTES + MINISEED_3_HEADER_BYTES:
            return None
        if not buffer.startswith(b"SL"):
            raise ConnectionLostError(f"expected a SeedLink packet, got {bytes(buffer[:8])!r}")
        length = record_bytes(bytes(buffer[HEADER_BYTES : HEADER_BYTES + PREFIX_BYTES]))
        if length > MAX_RECORD_BYTES:
            raise ConnectionLostError(f"expected a miniSEED record, got one of {length} bytes")
        whole = HEADER_BYTES + length
        if len(buffer) < whole:
            return None
        packet = bytes(buffer[:HEADER_BYTES]), bytes(buffer[HEADER_BYTES:whole])
        del buffer[:whole]
        return packet


def record_bytes(prefix: bytes) -> int:
    """Return the length of a miniSEED record from its first 128 bytes.

    Version 2 states it in blockette 1000 (default 512), version 3 in its header.
    """
    if prefix.startswith(b"MS\x03"):
        identifier, extra, data = struct.unpack_from("<BHI", prefix, 33)
        return MINISEED_3_HEADER_BYTES + int(identifier) + int(extra) + int(data)
    order = _byte_order(prefix)
    (at,) = struct.unpack_from(f"{order}H", prefix, 46)
    while 48 <= at <= len(prefix) - 8:
        kind, following = struct.unpack_from(f"{order}HH", prefix, at)
        if kind == 1000:
            return 1 << prefix[at + 6]
        if following <= at:
            break
        at = following
    return 512


def split_name(name: str) -> tuple[str, str, str, str]:
    """Split a SEED id into network, station, location and channel. Raises ``ValueError``."""
    parts = name.split(".")
    network, station, location, channel = parts if len(parts) == 4 else ("", "", "", "")
    if not (network and station and len(channel) == 3 and len(location) in (0, 2)):
        raise ValueError(f"receiver {name!r}: expected a SEED id, NETWORK.STATION.LOCATION.CHANNEL")
    return network, station, location, channel


def _by_station(names: Iterable[str]) -> dict[tuple[str, str], list[str]]:
    stations: dict[tuple[str, str], list[str]] = {}
    for name in names:
        network, station, location, channel = split_name(name)
        stations.setdefault((network, station), []).append(f"{location}{channel}")
    return stations


def _byte_order(record: bytes) -> str:
    """Return the byte order of a miniSEED 2 header, by the plausibility of its year."""
    (year,) = struct.unpack_from(">H", record, 20)
    return ">" if 1900 <= year <= 2100 or year == 0 else "<"


def _text_of(record: bytes) -> bytes:
    """Return the text of a miniSEED 2 log record."""
    order = _byte_order(record)
    (count,) = struct.unpack_from(f"{order}H", record, 30)
    (begin,) = struct.unpack_from(f"{order}H", record, 44)
    return record[begin : begin + count]


def _read_spans(document: bytes) -> dict[str, Span] | None:
    try:
        root = ElementTree.fromstring(document.rstrip(b"\0"))
    except ElementTree.ParseError:
        return None
    stations = root.findall("station")
    if not stations and root.find("error") is not None:
        return None
    spans = {}
    for station in stations:
        for stream in station.findall("stream"):
            location = stream.get("location", "").strip().strip("-")
            name = f"{station.get('network')}.{station.get('name')}.{location}.{stream.get('seedname')}"
            with contextlib.suppress(ValueError):
                spans[name] = Span(
                    parse_time_ns(stream.get("begin_time", "")), parse_time_ns(stream.get("end_time", ""))
                )
    return spans
