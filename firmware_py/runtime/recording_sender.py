"""Send recordings that the centre asks for, after the latents and never before them.

A recording is read and coded on a thread of its own, so that the device goes on recording. One recording is in work at
a time, one message in flight, and no message leaves while a latent waits in the spool. Nothing is kept on the disk: the
coded part is made again after a restart, byte for byte, and the centre asks for the bytes that it lacks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from firmware_py.inference.companding import GatherError
from firmware_py.protocol import packet
from firmware_py.protocol.recording_codec import RecordingCodecError, encode_part
from firmware_py.protocol.recording_messages import (
    MAX_PART_BYTES,
    End,
    Fetch,
    Message,
    NoRecording,
    Part,
    Piece,
    PieceRequest,
    Wait,
    decode_message,
    encode_message,
)
from firmware_py.protocol.repeater import Repeater

# Time without an answer, or after the end of a wait, after which a transfer is dropped, seconds; the centre asks again
# when it is back.
GIVE_UP_S = 3600.0

# Returns the samples (S, T, R) of an event that was sampled at a time (microseconds; 0: any). Raises ``GatherError``.
Find = Callable[[int, int], np.ndarray]


@dataclass(frozen=True)
class _Request:
    event: int
    sample_time_us: int
    misfit_ppm: int


class RecordingSender:
    """``ControlHandler`` for recordings on request.

    Args:
        header: Record with this device's device, survey, boot and model hash.
        find: Reads a kept recording; called on another thread.
        receivers: Survey receivers of the samples that ``find`` returns.
        latents_waiting: Returns True while a latent is not acknowledged.
        chunk_bytes: Bytes of a recording per message.
    """

    def __init__(
        self,
        header: packet.Record,
        find: Find,
        receivers: tuple[int, ...],
        latents_waiting: Callable[[], bool],
        chunk_bytes: int,
        log: Callable[..., None],
    ) -> None:
        self._repeater = Repeater(packet.RECORDING, header)
        self._find = find
        self._receivers = receivers
        self._latents_waiting = latents_waiting
        self._chunk_bytes = chunk_bytes
        self._log = log
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="recording")
        self._request: _Request | None = None
        self._coding: Future[bytes] | None = None
        self._data = b""
        self._part = Part(b"", 0)
        self._message: Message | None = None
        self._answered_s = 0.0

    def poll(self, now_s: float) -> packet.Record | None:
        """Return the next piece, or the last message again; None while latents wait."""
        if self._request is None:
            return None
        if self._coding:
            if not self._coding.done():
                return None
            self._take_coded(self._coding, now_s)
        if now_s - self._answered_s > GIVE_UP_S:
            self._log("recording_given_up", event=self._request.event)
            self._drop()
            return None
        if self._message is None or not self._repeater.is_due(now_s) or self._latents_waiting():
            return None
        event, sample_time_us = self._request.event, self._request.sample_time_us
        return self._repeater.record(encode_message(self._message), now_s, event, sample_time_us)

    def handle(self, record: packet.Record, now_s: float) -> None:
        """Handle a request for a recording, or for its next bytes.

        Raises:
            PacketError: The message is malformed.
        """
        if record.type != packet.RECORDING:
            return
        message = decode_message(record.payload)
        if isinstance(message, Fetch):
            self._begin(_Request(record.event, record.sample_time_us, message.misfit_ppm), now_s)
            return
        if self._request is None or record.event != self._request.event:
            return
        self._answered_s = now_s
        if isinstance(message, End):
            self._log("recording_ended", event=record.event)
            self._drop()
        elif self._coding is None and self._data:
            if isinstance(message, PieceRequest) and message.sha256 == self._part.sha256:
                self._send_piece(message)
            elif isinstance(message, Wait):
                self._message = self._part
                self._answered_s = now_s + message.seconds
                self._repeater.go_on(self._answered_s)

    def close(self) -> None:
        """Stop the thread after the recording that it codes."""
        self._worker.shutdown(cancel_futures=True)

    def _begin(self, request: _Request, now_s: float) -> None:
        self._answered_s = now_s
        if request == self._request:
            # The centre restarted, or its last answer was lost: say where this stands.
            if self._part.part_bytes:
                self._message = self._part
            self._repeater.go_on()
            return
        self._drop()
        self._request = request
        self._coding = self._worker.submit(self._code, request)
        self._log("recording_asked", event=request.event, misfit_ppm=request.misfit_ppm)

    def _code(self, request: _Request) -> bytes:
        """Read and code the recording; runs on the worker's thread."""
        samples = self._find(request.event, request.sample_time_us)
        data = encode_part(samples, self._receivers, request.misfit_ppm)
        if len(data) > MAX_PART_BYTES:
            raise RecordingCodecError(
                f"recording: expected at most {MAX_PART_BYTES >> 20} MiB coded, got {len(data) >> 20} MiB"
            )
        return data

    def _take_coded(self, coding: Future[bytes], now_s: float) -> None:
        assert self._request
        self._coding, self._answered_s = None, now_s
        self._repeater.go_on()
        try:
            self._data = coding.result()
        except (GatherError, RecordingCodecError, OSError, MemoryError) as error:
            self._message = NoRecording(str(error))
            self._log("recording_missing", event=self._request.event, reason=str(error))
            return
        self._part = Part(hashlib.sha256(self._data).digest(), len(self._data))
        self._message = self._part
        self._log("recording_coded", event=self._request.event, bytes=len(self._data))

    def _send_piece(self, want: PieceRequest) -> None:
        length = min(want.length, self._chunk_bytes)
        if data := self._data[want.offset : want.offset + length]:
            self._message = Piece(want.sha256, want.offset, data)
            self._repeater.go_on()

    def _drop(self) -> None:
        self._request = self._coding = self._message = None
        self._data, self._part = b"", Part(b"", 0)
