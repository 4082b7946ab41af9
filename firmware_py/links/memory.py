"""Links within one process, for tests and simulations: what one side sends the other receives."""

from __future__ import annotations

import queue

from firmware_py.links.base import LinkError, LinkStatistics

QUEUE_RECORDS = 32


class MemoryLink:
    """``Link`` of two queues, one each way; ``memory_pair`` makes both sides."""

    def __init__(self, out: queue.Queue[bytes], inbound: queue.Queue[bytes]) -> None:
        self._out = out
        self._in = inbound
        self._closed = False
        self.statistics = LinkStatistics()

    def send(self, record: bytes) -> bool:
        self._refuse_if_closed()
        try:
            self._out.put_nowait(bytes(record))
        except queue.Full:
            return False
        self.statistics.records_sent += 1
        self.statistics.bytes_sent += len(record)
        return True

    def receive(self, timeout_s: float) -> bytes | None:
        self._refuse_if_closed()
        try:
            record = self._in.get(timeout=timeout_s) if timeout_s else self._in.get_nowait()
        except queue.Empty:
            return None
        self.statistics.records_received += 1
        self.statistics.bytes_received += len(record)
        return record

    def close(self) -> None:
        self._closed = True

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise LinkError("link: closed; open another")


def memory_pair(queue_records: int = QUEUE_RECORDS) -> tuple[MemoryLink, MemoryLink]:
    """Two ends of one link that holds at most ``queue_records`` each way."""
    there: queue.Queue[bytes] = queue.Queue(queue_records)
    back: queue.Queue[bytes] = queue.Queue(queue_records)
    return MemoryLink(there, back), MemoryLink(back, there)
