"""A TCP proxy in user space that shapes what passes, and breaks it: cut, refuse, blackhole, half-open.

with Proxy(5557) as proxy:
    proxy.up.delay_s = 0.2       # towards the target; proxy.down is the way back
    proxy.down.swallow = True    # half-open
    proxy.cut()
"""

from __future__ import annotations

import contextlib
import queue
import random
import select
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType

from testbed.emulation.proxied import Connection, Way, reset
from testbed.emulation.shaping import Conditions, Medium, Shaper, Transfer

# Small buffers, so that the sender feels a slow link instead of filling the system's buffers.
SOCKET_BUFFER_BYTES = 1 << 15
WAIT_S = 0.1


class Proxy:
    """Listen on ``port`` of the loopback and connect each client to ``target_port``.

    One thread moves all bytes. The conditions ``up`` and ``down`` may be changed at any time. While ``refusing`` is
    set, or if the target cannot be reached, clients are reset with RST. Proxies with the same ``medium`` share its time
    in both directions. ``sent`` and ``received`` are the transfers up and down.
    """

    def __init__(self, target_port: int, port: int = 0, seed: int = 0, medium: Medium | None = None) -> None:
        self.up, self.down = Conditions(), Conditions()
        self.sent: list[Transfer] = []
        self.received: list[Transfer] = []
        self.refusing = False
        self._target = ("127.0.0.1", target_port)
        self._rng = random.Random(seed)
        self._medium = medium
        self._connections: list[Connection] = []
        self._bit_errors = 0
        self._requests: queue.SimpleQueue[tuple[Callable[[], int], Future[int]]] = queue.SimpleQueue()
        self._closing = False
        self._listener = socket.create_server(("127.0.0.1", port))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._waker, self._wake = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name=f"proxy {self.port}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def connections(self) -> int:
        """Number of connections open through to the target."""
        return self._ask(lambda: len(self._whole()))

    @property
    def bit_errors(self) -> int:
        """Bit errors so far, both directions, all connections."""
        return self._ask(lambda: self._bit_errors + sum(c.bit_errors for c in self._connections))

    def cut(self, fin: bool = False) -> int:
        """Close every connection, by RST or by FIN, and return their number; bytes in transit are lost."""

        def end() -> int:
            whole = self._whole()
            for connection in whole:
                connection.finish() if fin else connection.reset()
            return len(whole)

        return self._ask(end)

    def close(self) -> None:
        """Close the proxy and all its connections."""
        self._closing = True
        self._wake.send(b"x")
        self._thread.join()
        for connection in self._connections:
            connection.reset()
        for end in (self._listener, self._waker, self._wake):
            end.close()

    def _whole(self) -> list[Connection]:
        return [c for c in self._connections if not c.finishing and not c.closed]

    def _ask(self, work: Callable[[], int]) -> int:
        """Run ``work`` in the proxy's thread and return its result."""
        answer: Future[int] = Future()
        self._requests.put((work, answer))
        self._wake.send(b"x")
        return answer.result()

    def _run(self) -> None:
        while not self._closing:
            readable = self._wait()
            if self._waker in readable:
                self._waker.recv(1 << 10)
            with contextlib.suppress(queue.Empty):
                while True:
                    work, answer = self._requests.get_nowait()
                    answer.set_result(work())
            if self._listener in readable:
                self._accept()
            now_s = time.monotonic()
            for connection in self._connections:
                if not connection.closed:
                    connection.move(readable, now_s)
            self._bit_errors += sum(c.bit_errors for c in self._connections if c.closed)
            self._connections = [c for c in self._connections if not c.closed]

    def _wait(self) -> set[socket.socket]:
        """Return the readable sockets, once there is something to do."""
        now_s = time.monotonic()
        reading = [self._listener, self._waker]
        writing: list[socket.socket] = []
        wake_s = now_s + WAIT_S
        for connection in self._connections:
            reading += connection.readers(now_s)
            writing += connection.writers()
            wake_s = min([wake_s, *connection.wake_s(now_s)])
        readable, _, _ = select.select(reading, writing, [], max(wake_s - now_s, 0.0))
        return set(readable)

    def _accept(self) -> None:
        try:
            near, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        far = socket.socket()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
        try:
            if self.refusing:
                raise ConnectionRefusedError
            far.connect(self._target)
        except OSError:
            far.close()
            reset(near)
            return
        for end in (near, far):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ends = ((near, self.up, self.sent), (far, self.down, self.received))
        up, down = (
            Way(end, conditions, Shaper(conditions, self._rng, self._medium, transfers))
            for end, conditions, transfers in ends
        )
        self._connections.append(Connection(up, down))
