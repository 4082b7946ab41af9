"""A stand-in for a SeedLink server that behaves as ringserver 4.5 does where that matters to a client.

All channels share one ring in order of arrival, numbered from 1. ``TIME`` puts the reader at the first packet in the
ring whose data end at or after the earliest start asked for, else behind the last packet; nothing is left out after
that. A start in the future is refused. ``DATA n`` goes on behind packet ``n - 1``, and from the newest where that
packet is not there. Stations that do not exist are accepted. A restart begins the numbers again.
(Read from slclient.c and ring.c of ringserver 4.5.)
"""

from __future__ import annotations

import contextlib
import io
import socket
import struct
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime

NS = 1_000_000_000


@dataclass(frozen=True)
class Packet:
    name: str
    start_ns: int
    end_ns: int
    data: bytes


def packets_of(data: bytes) -> list[Packet]:
    """Records of miniSEED data, 2 or 3."""
    from pymseed import MS3Record

    packets, at = [], 0
    while at < len(data):
        record = MS3Record.parse(data[at:])
        length = record.reclen
        network, station, location, *channel = record.sourceid.removeprefix("FDSN:").split("_")
        last = round((record.samplecnt - 1) * NS / record.samprate) if record.samprate > 0 else 0
        name = f"{network}.{station}.{location}.{''.join(channel)}"
        packets.append(Packet(name, record.starttime, record.starttime + last, data[at : at + length]))
        at += length
    return packets


class SeedLinkServer:
    """Serves what ``feed`` gave so far, in its order, to whoever asks; ``asked`` is every command that came.

    Args:
        host: where it listens.
        is_mute: it accepts connections and answers nothing.
        gives_info: it answers ``INFO STREAMS``.
        takes_time: it knows the command ``TIME``.
    """

    def __init__(
        self, host: str = "127.0.0.1", is_mute: bool = False, gives_info: bool = True, takes_time: bool = True
    ) -> None:
        self.asked: list[str] = []
        self.is_mute, self.gives_info, self.takes_time = is_mute, gives_info, takes_time
        # Packets that a request by time is put too far on by; whether it is ignored.
        self.skips, self.ignores_time = 0, False
        # A pause after every few packets.
        self.pause_s, self.pause_every = 0.0, 1
        self._ring: list[Packet] = []
        self._more = threading.Condition()
        self._connections: list[socket.socket] = []
        self._family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._at = (host, 0)
        self._listen()
        self.port = self._listener.getsockname()[1]
        self._at = (host, self.port)
        self.address = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def __enter__(self) -> SeedLinkServer:
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def feed(self, stream, order: str = "time", reclen: int = 512) -> None:
        """Add records of an ObsPy stream: the earliest first, or ``order`` "channel" after channel."""
        self.feed_packets(self.packets(stream, order, reclen))

    @staticmethod
    def packets(stream, order: str = "time", reclen: int = 512) -> list[Packet]:
        """Records of an ObsPy stream, in the order given."""
        packets: list[Packet] = []
        for trace in stream:
            file = io.BytesIO()
            trace.write(file, format="MSEED", reclen=reclen)
            packets += packets_of(file.getvalue())
        return sorted(packets, key=lambda packet: packet.end_ns) if order == "time" else packets

    def feed_packets(self, packets: list[Packet]) -> None:
        with self._more:
            self._ring += packets
            self._more.notify_all()

    def stop(self) -> None:
        """End every connection and stop listening."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def restart(self, kept: int | None = None) -> None:
        """Listen again, packets numbered from 1, with the last ``kept`` packets (None: all) in the ring."""
        with self._more:
            if kept is not None:
                self._ring = self._ring[len(self._ring) - kept :]
        self._listen()

    def cut(self) -> None:
        """End every connection."""
        with self._more:
            for connection in self._connections:
                # One that the client has ended already cannot be shut down.
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                connection.close()
            self._connections.clear()
            self._more.notify_all()

    def _listen(self) -> None:
        self._listener = socket.create_server(self._at, family=self._family)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self._converse(connection)

    def _converse(self, connection: socket.socket) -> None:
        patterns: dict[tuple[str, str], list[str]] = {}
        station, number, since_ns = ("", ""), None, None
        for command in self._commands(connection):
            word, *rest = command.split()
            self.asked.append(" ".join((word, *rest)))
            if self.is_mute:
                continue
            if word == "HELLO":
                connection.sendall(b"SeedLink v4.0 (RingServer/stand-in) :: SLPROTO:3.1\r\nEPIC tests\r\n")
                continue
            if word == "INFO":
                self._inform(connection, rest[0])
                continue
            reply = b"OK\r\n"
            if word == "STATION":
                station = (rest[1], rest[0])
                patterns.setdefault(station, [])
            elif word == "SELECT" and len(rest[0]) in (3, 5):
                patterns[station].append(rest[0])
            elif word == "DATA":
                number = int(rest[0], 16) - 1 if rest else None
            elif word == "TIME" and self.takes_time:
                year, month, day, hour, minute, second = (int(n) for n in rest[0].split(","))
                start_ns = int(datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()) * NS
                if start_ns > time.time_ns():
                    reply = b"ERROR\r\n"
                else:
                    since_ns = start_ns if since_ns is None else min(since_ns, start_ns)
            elif word == "END":
                break
            else:
                reply = b"ERROR\r\n"
            connection.sendall(reply)
        else:
            return
        wanted = {
            f"{network}.{name}.{selector[:-3]}.{selector[-3:]}"
            for (network, name), selectors in patterns.items()
            for selector in selectors
        }
        with self._more:
            at = self._position(number, since_ns)
        sending = threading.Lock()
        threading.Thread(target=self._answer, args=(connection, sending), daemon=True).start()
        while True:
            with self._more:
                while len(self._ring) <= at and connection.fileno() >= 0:
                    self._more.wait()
                packets = self._ring[at:]
            if connection.fileno() < 0:
                return
            for packet in packets:
                at += 1
                if self.pause_s and at % self.pause_every == 0:
                    time.sleep(self.pause_s)
                if packet.name in wanted:
                    with sending:
                        connection.sendall(b"SL%06X" % (at & 0xFFFFFF) + packet.data)

    def _position(self, number: int | None, since_ns: int | None) -> int:
        """Index of the packet to begin with."""
        if number is not None and 1 <= number <= len(self._ring):
            return number
        if since_ns is not None and not self.ignores_time:
            found = (i for i, packet in enumerate(self._ring) if packet.end_ns >= since_ns)
            skipped, self.skips = self.skips, 0
            return min(next(found, len(self._ring)) + skipped, len(self._ring))
        return len(self._ring)

    def _answer(self, connection: socket.socket, sending: threading.Lock) -> None:
        """Answer while data are streamed: ringserver answers ``INFO ID``, no list of streams."""
        with contextlib.suppress(OSError):
            for command in self._commands(connection):
                self.asked.append(command)
                if command == "INFO ID" and not self.is_mute:
                    with sending:
                        self._inform(connection, "ID")

    def _inform(self, connection: socket.socket, level: str) -> None:
        stations: dict[tuple[str, str], list[str]] = {}
        if level == "STREAMS":
            if not self.gives_info:
                connection.sendall(b"ERROR\r\n")
                return
            with self._more:
                ring = list(self._ring)
            begin = {packet.name: packet.start_ns for packet in reversed(ring)}
            end = {packet.name: packet.end_ns for packet in ring}
            for name in begin:
                network, station, location, channel = name.split(".")
                stations.setdefault((network, station), []).append(
                    f'<stream location="{location}" seedname="{channel}" type="D" '
                    f'begin_time="{_iso(begin[name])}" end_time="{_iso(end[name])}"/>'
                )
        inner = "".join(
            f'<station name="{station}" network="{network}" begin_seq="1">{"".join(streams)}</station>'
            for (network, station), streams in stations.items()
        )
        text = f'<?xml version="1.0"?><seedlink software="stand-in">{inner}</seedlink>'.encode()
        pieces = [text[at : at + 456] for at in range(0, len(text), 456)]
        answer = bytearray()
        for i, piece in enumerate(pieces):
            answer += b"SLINFO  " if i == len(pieces) - 1 else b"SLINFO *"
            answer += _log_record(piece)
        connection.sendall(bytes(answer))

    @staticmethod
    def _commands(connection: socket.socket):
        buffer = b""
        while True:
            while b"\r" not in buffer:
                more = connection.recv(1024)
                if not more:
                    return
                buffer += more.replace(b"\n", b"")
            command, _, buffer = buffer.partition(b"\r")
            yield command.decode()


def _iso(nanoseconds: int) -> str:
    moment = datetime.fromtimestamp(nanoseconds // NS, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds % NS // 1000:06d}Z"


def _log_record(text: bytes) -> bytes:
    """Text in a record of 512 bytes, encoding 0."""
    record = bytearray(512)
    record[:20] = b"000001D SERVE  INFSL"
    struct.pack_into(">HHBBBBH", record, 20, 2026, 1, 0, 0, 0, 0, 0)
    struct.pack_into(">H", record, 30, len(text))
    struct.pack_into(">BBBBlHHHHBBBB", record, 36, 0, 0, 0, 1, 0, 56, 48, 1000, 0, 0, 1, 9, 0)
    record[56 : 56 + len(text)] = text
    return bytes(record)
