"""Open byte streams for frames: serial ports and TCP connections. Nothing here blocks."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import termios
import threading
from typing import Protocol

import serial

from firmware_py.errors import FirmwareError
from firmware_py.links.base import LinkError

READ_BYTES = 4096
# Time until a vanished peer is noticed, with or without data in flight, seconds.
TCP_SILENCE_S = 15
# Connection timeout per address of a host name, seconds.
ADDRESS_TIMEOUT_S = 10.0


class PortError(FirmwareError, OSError):
    """The stream is gone: unplugged, reset or refused. It can be reopened."""


class Port(Protocol):
    """Open stream. ``read`` (called when data is ready) and ``write`` move as many bytes as possible without blocking.

    Both raise ``PortError`` at the stream's end.
    """

    def fileno(self) -> int: ...

    def read(self) -> bytes: ...

    def write(self, data: bytes | bytearray) -> int: ...

    def waiting_bytes(self) -> int:
        """Return the bytes written that have not left this machine yet, as far as known."""
        ...

    def close(self) -> None: ...


class SerialPort:
    """Serial port, 8N1, opened for exclusive access."""

    def __init__(self, path: str, baud: int) -> None:
        try:
            self._serial = serial.Serial(path, baud, timeout=0, write_timeout=0, exclusive=True)
        except (serial.SerialException, OSError, ValueError, termios.error) as error:
            raise PortError(f"{path}: cannot be opened ({_reason(error)})") from None
        self._path = path

    def fileno(self) -> int:
        return self._serial.fileno()

    def read(self) -> bytes:
        try:
            return os.read(self.fileno(), READ_BYTES) or self._end()
        except BlockingIOError:
            return b""
        except OSError as error:
            raise PortError(f"{self._path}: {_reason(error)}") from None

    def write(self, data: bytes | bytearray) -> int:
        try:
            return os.write(self.fileno(), data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise PortError(f"{self._path}: {_reason(error)}") from None

    def waiting_bytes(self) -> int:
        try:
            return self._serial.out_waiting
        except OSError:
            return 0

    def close(self) -> None:
        # Discard unsent bytes; they must not block the close.
        with contextlib.suppress(OSError, termios.error, serial.SerialException):
            termios.tcflush(self.fileno(), termios.TCOFLUSH)
        self._serial.close()

    def _end(self) -> bytes:
        raise PortError(f"{self._path}: hung up")


class TcpPort:
    """One TCP connection; ``connecting`` until the other side has answered."""

    def __init__(self, connection: socket.socket, peer: str, connecting: bool = False) -> None:
        self._socket = connection
        self._peer = peer
        self._connecting = connecting
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            ("TCP_KEEPIDLE", TCP_SILENCE_S // 3),
            ("TCP_KEEPINTVL", TCP_SILENCE_S // 3),
            ("TCP_KEEPCNT", 2),
            ("TCP_USER_TIMEOUT", 1000 * TCP_SILENCE_S),
        ):
            # Linux has all of these options; other systems have some.
            if hasattr(socket, option):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    @classmethod
    def connect(cls, endpoint: str) -> Port:
        """Start to connect to host:port; a name is resolved in the background.

        Raises:
            PortError: The connection cannot be started.
        """
        host, port = split_endpoint(endpoint)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        except socket.gaierror:
            return NamedPort(endpoint)
        except UnicodeError as error:
            raise PortError(f"{endpoint}: no name of a host ({error}); mend [link] endpoint") from None
        family, kind, protocol, _, address = found[0]
        connection = None
        try:
            connection = socket.socket(family, kind, protocol)
            connection.setblocking(False)
            code = connection.connect_ex(address)
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
            return cls(connection, endpoint, connecting=code != 0)
        except OSError as error:
            if connection:
                connection.close()
            raise PortError(f"{endpoint}: {_reason(error)}") from None

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> bytes:
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise PortError(f"{self._peer}: {_reason(error)}") from None
        if not data:
            raise PortError(f"{self._peer}: closed by the other side")
        return data

    def write(self, data: bytes | bytearray) -> int:
        if self._connecting:
            code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise PortError(f"{self._peer}: {os.strerror(code)}")
            try:
                self._socket.getpeername()
            except OSError:
                return 0
            self._connecting = False
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise PortError(f"{self._peer}: {_reason(error)}") from None

    def waiting_bytes(self) -> int:
        return 0

    def hang_up(self) -> None:
        """Shut the connection down from another thread than the one that serves it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()


class NamedPort:
    """``TcpPort`` to a host by name.

    A thread resolves the name, which takes a minute without a name server, and tries its addresses in turn. Until then
    ``fileno`` is a pipe that becomes readable when the thread ends.
    """

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._port: TcpPort | None = None
        self._connection: socket.socket | None = None
        self._fault = ""
        self._closed = False
        self._lock = threading.Lock()
        self._done, done = os.pipe()
        # A daemon thread: shutdown does not wait for it.
        threading.Thread(target=self._connect, args=(done,), daemon=True).start()

    def _connect(self, done: int) -> None:
        try:
            found = socket.create_connection(split_endpoint(self._endpoint), timeout=ADDRESS_TIMEOUT_S)
            with self._lock:
                if self._closed:
                    found.close()
                self._connection = found
        except OSError as error:
            self._fault = _reason(error)
        finally:
            os.close(done)

    def fileno(self) -> int:
        return self._port.fileno() if self._port else self._done

    def read(self) -> bytes:
        if self._port:
            return self._port.read()
        if self._connection is None:
            raise PortError(f"{self._endpoint}: {self._fault}")
        self._port = TcpPort(self._connection, self._endpoint)
        return b""

    def write(self, data: bytes | bytearray) -> int:
        return self._port.write(data) if self._port else 0

    def waiting_bytes(self) -> int:
        return 0

    def close(self) -> None:
        os.close(self._done)
        with self._lock:
            self._closed = True
            if self._connection:
                self._connection.close()


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Host and port of ``host:port`` or ``[v6]:port``. Raises ``LinkError``."""
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise LinkError(f"link: expected host:port, got {endpoint!r}")
    return host.strip("[]"), int(port)


def _reason(error: BaseException) -> str:
    # Errors of name resolution have their own numbers.
    if isinstance(error, socket.gaierror):
        return error.strerror or str(error)
    number = getattr(error, "errno", None)
    return os.strerror(number) if isinstance(number, int) else str(error)
