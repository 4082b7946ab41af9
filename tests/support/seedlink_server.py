"""A SeedLink server as far as a client of live data needs one: HELLO, STATION, SELECT, DATA, TIME, END."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
from dataclasses import dataclass


@dataclass(frozen=True)
class Record:
    station: tuple[str, str]
    selector: str
    end: object
    data: bytes


class SeedLinkServer:
    """Serves what ``feed`` gave so far, in its order, to whoever asks; ``asked`` is every command that came."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._records: list[Record] = []
        self._more = threading.Condition()
        self._connections: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> SeedLinkServer:
        return self

    def __exit__(self, *_) -> None:
        self._listener.close()
        self.cut()

    def feed(self, stream) -> None:
        """Records of 512 bytes of an ObsPy stream, the earliest first."""
        import obspy

        records = []
        for trace in stream:
            file = io.BytesIO()
            trace.write(file, format="MSEED", reclen=512)
            whole = file.getvalue()
            for start in range(0, len(whole), 512):
                data = whole[start : start + 512]
                stats = obspy.read(io.BytesIO(data), format="MSEED", headonly=True)[0].stats
                station = (stats.network, stats.station)
                records.append(Record(station, stats.location + stats.channel, stats.endtime, data))
        with self._more:
            self._records += sorted(records, key=lambda record: record.end)
            self._more.notify_all()

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

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self._converse(connection)

    def _converse(self, connection: socket.socket) -> None:
        import obspy

        wanted: dict[tuple[str, str], list[str]] = {}
        station, first, since = ("", ""), len(self._records), None
        for command in self._commands(connection):
            word, *rest = command.split()
            self.asked.append(" ".join((word, *rest)))
            if word == "HELLO":
                connection.sendall(b"SeedLink v3.1 (stand-in)\r\nEPIC tests\r\n")
                continue
            if word == "STATION":
                station = (rest[1], rest[0])
            elif word == "SELECT":
                wanted.setdefault(station, []).append(rest[0])
            elif word == "DATA" and rest:
                first = int(rest[0], 16) - 1
            elif word == "TIME":
                first, since = 0, obspy.UTCDateTime(*(int(n) for n in rest[0].split(",")))
            elif word == "END":
                break
            connection.sendall(b"OK\r\n")
        while True:
            with self._more:
                while len(self._records) <= first and connection.fileno() >= 0:
                    self._more.wait()
                records = list(enumerate(self._records[first:], start=first + 1))
            if connection.fileno() < 0:
                return
            for number, record in records:
                if record.selector in wanted.get(record.station, ()) and (
                    since is None or record.end >= since
                ):
                    connection.sendall(b"SL%06X" % number + record.data)
            first += len(records)

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
