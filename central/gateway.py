"""Devices on serial ports and plain TCP: a thread for each line, all handing on to the centre over ZeroMQ."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial

import zmq

from central.config import GatewaySection
from central.line import Line, Seals
from firmware_py.link_stream import Backoff
from firmware_py.log import Log
from firmware_py.port import PortError, SerialPort, TcpPort, split_endpoint

MAX_CONNECTIONS = 256
# Who says nothing good for so long after connecting does not belong here.
AUTHENTIC_WITHIN_S = 30.0
ACCEPT_S = 0.2


class GatewayError(OSError):
    """The gateway cannot listen where it was told to."""


class Gateway:
    """All lines of one configuration. ``connect`` opens a line's own DEALER to the centre."""

    def __init__(
        self, section: GatewaySection, seals: Seals, connect: Callable[[], zmq.Socket], log: Log
    ) -> None:
        self._section = section
        self._seals = seals
        self._connect = connect
        self._log = log
        self._listener: socket.socket | None = None
        self.tcp_endpoint: str | None = None
        if section.tcp:
            host, number = split_endpoint(section.tcp)
            try:
                self._listener = socket.create_server((host, number), backlog=MAX_CONNECTIONS)
            except OSError as error:
                raise GatewayError(
                    f"{section.tcp}: cannot listen there ({error.strerror}); expected host:port of this machine"
                ) from None
            self._listener.settimeout(ACCEPT_S)
            self.tcp_endpoint = f"{host}:{self._listener.getsockname()[1]}"

    def run(self, stopping: Callable[[], bool]) -> None:
        """Serve every line until ``stopping``; a port that is not there, or vanishes, is tried again."""
        threads = [
            threading.Thread(target=self._serve_port, args=(path, stopping), name=path)
            for path in self._section.ports
        ]
        if self._listener:
            threads.append(threading.Thread(target=self._accept, args=(self._listener, stopping), name="tcp"))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _serve_port(self, path: str, stopping: Callable[[], bool]) -> None:
        backoff = Backoff()
        complaint = ""
        upstream = self._connect()
        line = Line(path, self._seals, upstream, self._log)
        wait = threading.Event()
        try:
            while not stopping():
                if due_s := backoff.due_in_s():
                    wait.wait(min(due_s, ACCEPT_S))
                    continue
                try:
                    with closing(SerialPort(path, self._section.baud)) as port:
                        self._log.write("line_open", name=path, baud=self._section.baud)
                        complaint = ""
                        backoff.succeeded()
                        line.serve(port, stopping)
                except PortError as error:
                    backoff.failed()
                    # Once for each reason: a port may be away for weeks.
                    if str(error) != complaint:
                        complaint = str(error)
                        self._log.write("line_down", name=path, reason=complaint)
        finally:
            upstream.close()

    def _accept(self, listener: socket.socket, stopping: Callable[[], bool]) -> None:
        connections: list[threading.Thread] = []
        try:
            while not stopping():
                try:
                    connection, address = listener.accept()
                except TimeoutError:
                    continue
                connections = [thread for thread in connections if thread.is_alive()]
                if len(connections) >= MAX_CONNECTIONS:
                    self._log.write("line_refused", name=str(address), reason=f"{MAX_CONNECTIONS} are open")
                    connection.close()
                    continue
                name = f"{address[0]}:{address[1]}"
                serve = partial(self._serve_connection, TcpPort(connection, name), name, stopping)
                connections.append(threading.Thread(target=serve, name=name))
                connections[-1].start()
        finally:
            listener.close()
            for thread in connections:
                thread.join()

    def _serve_connection(self, port: TcpPort, name: str, stopping: Callable[[], bool]) -> None:
        upstream = self._connect()
        self._log.write("line_open", name=name)
        try:
            with closing(port):
                Line(name, self._seals, upstream, self._log).serve(port, stopping, AUTHENTIC_WITHIN_S)
        except PortError as error:
            self._log.write("line_down", name=name, reason=str(error))
        finally:
            upstream.close()
