"""Serve devices on serial ports and plain TCP: one thread per line, all forwarding to the centre over ZeroMQ."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial

import zmq

from central.config import GatewaySection
from central.gateway.listener import PendingConnection, TcpListener
from central.gateway.sessions import FrameAuthenticators, SerialSession
from firmware_py.links.port import PortError, SerialPort, TcpPort
from firmware_py.links.stream import Backoff
from firmware_py.links.zeromq import ZmqLink
from firmware_py.protocol import packet
from firmware_py.protocol.framing import Deframer
from firmware_py.runtime.log import Log

# Maximum TCP connections of devices; with pending connections they fit a process's 1,024 file descriptors.
MAX_CONNECTIONS = 128
# Maximum connections per device. A dead connection may look alive for a while, and a replayed frame may open one too.
DEVICE_CONNECTIONS = 4
LOOK_S = 0.2


@dataclass
class Connection:
    """TCP connection of a device, and the thread that serves it.

    ``owner`` is the (survey, device) of its first record. ``evicted`` holds the reason if the gateway closed it.
    """

    port: TcpPort
    line: SerialSession
    owner: tuple[int, int] | None
    thread: threading.Thread = field(default_factory=threading.Thread)
    evicted: str = ""

    def displace(self, reason: str) -> None:
        self.evicted = reason
        self.port.hang_up()
        self.thread.join()


class Gateway:
    """Gateway for all lines of one configuration.

    ``connect`` opens a separate link to the centre for each line.

    Raises:
        ListenError: The gateway cannot bind to its endpoint.
    """

    def __init__(
        self, section: GatewaySection, seals: FrameAuthenticators, connect: Callable[[], ZmqLink], log: Log
    ) -> None:
        self._section = section
        self._seals = seals
        self._connect = connect
        self._log = log
        self._connections: list[Connection] = []
        self._lock = threading.Lock()
        self._lines: list[SerialSession] = []
        self._ended: dict[str, Counter[str]] = {}
        self._failure: BaseException | None = None
        self.listener = TcpListener(section.tcp, seals.open, log) if section.tcp else None

    def run(self, stopping: Callable[[], bool]) -> None:
        """Serve every line until ``stopping`` is set; a missing or vanished port is retried."""

        def ending() -> bool:
            return self._failure is not None or stopping()

        work: dict[str, Callable[[], None]] = {
            path: partial(self._serve_port, path, ending) for path in self._section.ports
        }
        if self.listener:
            work["listener"] = partial(self.listener.run, ending, partial(self._admit, ending))
        threads = [
            threading.Thread(target=self._authenticator, args=(do,), name=name) for name, do in work.items()
        ]
        self._log.write(
            "gateway",
            ports=self._section.ports,
            baud=self._section.baud,
            tcp=self.listener.endpoint if self.listener else None,
        )
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for connection in self._connections:
            connection.thread.join()
        if self._failure:
            raise self._failure

    def counts(self) -> dict[str, Counter[str]]:
        """Return the counters since the start: each serial port, all TCP connections, pending connections."""
        with self._lock:
            found = {name: Counter(counts) for name, counts in self._ended.items()}
            for line in self._lines:
                found.setdefault(self._label(line), Counter()).update(line.counts.copy())
        if self.listener:
            found["listener"] = self.listener.counts.copy()
        return found

    def _label(self, line: SerialSession) -> str:
        return line.name if line.name in self._section.ports else "tcp"

    @contextmanager
    def _counted(self, line: SerialSession) -> Iterator[None]:
        """Include ``line`` in the counters while it is served, and keep its totals afterwards."""
        with self._lock:
            self._lines.append(line)
        try:
            yield
        finally:
            with self._lock:
                self._lines.remove(line)
                self._ended.setdefault(self._label(line), Counter()).update(line.counts)

    def close(self) -> None:
        """Stop listening; needed only if ``run`` is never called."""
        if self.listener:
            self.listener.close()

    def _authenticator(self, work: Callable[[], None]) -> None:
        """Contain a thread's failure; a dead thread must not leave the gateway without its lines."""
        try:
            work()
        except zmq.ContextTerminated:
            # The centre in this process has stopped and logs the reason itself.
            return
        except BaseException as error:
            self._failure = error

    def _serve_port(self, path: str, ending: Callable[[], bool]) -> None:
        backoff = Backoff()
        complaint = ""
        upstream = self._connect()
        line = SerialSession(path, self._seals, upstream, self._log, self._section.baud / 10)
        with closing(upstream), self._counted(line):
            while not ending():
                if due_s := backoff.due_in_s():
                    time.sleep(min(due_s, LOOK_S))
                    continue
                try:
                    with closing(SerialPort(path, self._section.baud)) as port:
                        self._log.write("line_open", name=path, baud=self._section.baud)
                        complaint = ""
                        backoff.succeeded()
                        line.serve(port, ending)
                except PortError as error:
                    backoff.failed()
                    # Log each reason once: a port may be missing for weeks.
                    if str(error) != complaint:
                        complaint = str(error)
                        self._log.write("line_down", name=path, reason=complaint)

    def _admit(self, ending: Callable[[], bool], pending: PendingConnection, records: list[bytes]) -> None:
        """Give an authenticated device its own line and thread."""
        self._connections = [one for one in self._connections if one.thread.is_alive()]
        owner = _owner(records[0])
        earlier = [one for one in self._connections if owner and one.owner == owner]
        if len(earlier) >= DEVICE_CONNECTIONS:
            # A peer that replays one record can use up only that device's connections.
            _quietest(earlier).displace("its device has come anew")
        elif len(self._connections) >= MAX_CONNECTIONS:
            _quietest(earlier or self._connections).displace("made room for another device")
        try:
            line = SerialSession(pending.name, self._seals, self._connect(), self._log)
        except (OSError, zmq.ZMQError) as error:
            # Out of file descriptors; the listener goes on.
            pending.port.close()
            self._log.write("line_down", name=pending.name, reason=str(error))
            return
        connection = Connection(pending.port, line, owner)
        serve = partial(self._serve_connection, connection, pending.deframer, records, ending)
        connection.thread = threading.Thread(target=serve, name=pending.name)
        self._connections.append(connection)
        connection.thread.start()

    def _serve_connection(
        self, connection: Connection, deframer: Deframer, first: list[bytes], ending: Callable[[], bool]
    ) -> None:
        line = connection.line
        self._log.write("line_open", name=line.name)
        with closing(line.upstream), closing(connection.port), self._counted(line):
            try:
                line.serve(connection.port, ending, deframer, first)
            except PortError as error:
                self._log.write("line_down", name=line.name, reason=connection.evicted or str(error))
            except zmq.ContextTerminated:
                return
            except Exception as error:
                # A fault caused by one peer ends only its own line.
                self._log.write("line_failed", name=line.name, reason=repr(error))


def _quietest(connections: list[Connection]) -> Connection:
    return min(connections, key=lambda one: one.line.last_seen_s)


def _owner(record_bytes: bytes) -> tuple[int, int] | None:
    """Return the (survey, device) of a record, or None if it is malformed (possible without a MAC)."""
    try:
        record = packet.decode_record(record_bytes)
    except packet.PacketError:
        return None
    return record.survey, record.device
