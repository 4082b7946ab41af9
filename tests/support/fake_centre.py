"""A centre that only answers: for tests of devices, without the room ``central``."""

from __future__ import annotations

import threading
from collections.abc import Callable

import zmq

from firmware_py.protocol import packet
from firmware_py.runtime.log import now_us


def acknowledge_all(record: packet.Record) -> packet.Record | None:
    return packet.acknowledge(record)


def answer_to(said: packet.Record) -> packet.Record:
    """The centre's answer to HELLO or HEALTH: its clock."""
    return packet.Record(
        said.type, said.device, said.survey, said.boot, said.sequence, sample_time_us=now_us()
    )


class FakeCentre:
    """A ROUTER on a thread; ``answer`` maps a record to its answer, several, or None.

    ``records`` is what arrived, but for what devices say of themselves: that is in ``said``, and is answered only if
    ``answer_said``.
    """

    def __init__(
        self,
        answer: Callable[[packet.Record], packet.Record | list[packet.Record] | None] = acknowledge_all,
        endpoint: str = "tcp://127.0.0.1:*",
        options: dict[int, bytes | int] | None = None,
        answer_said: bool = False,
    ) -> None:
        self.records: list[packet.Record] = []
        self.said: list[packet.Record] = []
        self.answer = answer
        self._answer_said = answer_said
        self._stopping = threading.Event()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 500)
        for option, value in (options or {}).items():
            self._socket.setsockopt(option, value)
        self._socket.bind(endpoint)
        self.endpoint: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.is_set():
            if not self._socket.poll(10):
                continue
            peer, data = self._socket.recv_multipart()
            record = packet.decode_record(data)
            if record.type in (packet.HELLO, packet.HEALTH):
                self.said.append(record)
                if self._answer_said:
                    self._socket.send_multipart([peer, packet.encode_record(answer_to(record))])
                continue
            self.records.append(record)
            answer = self.answer(record) or []
            for one in answer if isinstance(answer, list) else [answer]:
                self._socket.send_multipart([peer, packet.encode_record(one)])

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._socket.close()
        self._context.term()

    def __enter__(self) -> FakeCentre:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
