"""Records, frames and messages that are almost right: a seeded mutational fuzzer."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

from fake_decoder import LATENT, MODEL_HASH

from firmware_py.links.stream import FrameAuthenticator
from firmware_py.protocol import packet
from firmware_py.protocol.framing import cobs_encode
from firmware_py.protocol.health_messages import Health, Hello, encode_health
from firmware_py.protocol.recording_messages import (
    End,
    Fetch,
    NoRecording,
    Part,
    Piece,
    PieceRequest,
    Wait,
)
from firmware_py.protocol.recording_messages import encode_message as encode_recording_message
from firmware_py.protocol.update_messages import (
    Chunk,
    ChunkRequest,
    NotAvailable,
    Offer,
    Report,
    ReportAck,
    encode_message,
)
from firmware_py.updates.archive import SIGNATURE_BYTES

# Header fields: place and struct format.
FIELDS = ((2, "B"), (3, "B"), (4, "H"), (6, "H"), (8, "I"), (12, "I"), (16, "I"), (20, "Q"), (36, "H"))
LENGTH_PLACE = 36
TELLING_BYTES = (0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF)
# CBOR heads that announce more than there is: long strings, arrays, maps, nesting, indefinite lengths.
CBOR_LIES = (
    b"\x5b" + b"\xff" * 8,
    b"\x7a\x7f\xff\xff\xff",
    b"\x9b\x00\x00\x00\x40\x00\x00\x00\x00",
    b"\xbb\x7f\xff\xff\xff\xff\xff\xff\xff",
    b"\x81" * 40,
    b"\x9f" * 20,
    b"\xd8\x1c\xd8\x1d\x00",
    b"\xc2\x58\xff",
    b"\xfb\x7f\xf8\x00\x00\x00\x00\x00\x00",
)


class Mutator:
    """Everything from one ``seed``. ``sender`` is (survey, device) of what begins as an honest record."""

    def __init__(self, seed: int, sender: tuple[int, int] = (1, 0)) -> None:
        self.rng = random.Random(seed)
        self._survey, self._device = sender
        self._sequence = 0

    def record(self) -> bytes:
        """A record as an honest device, or a centre, would send it."""
        rng = self.rng
        self._sequence += 1
        kind = rng.choices(packet.TYPES, (8, 2, 1, 2, 4, 1, 2))[0]
        payload = {
            packet.LATENT: lambda: rng.randbytes(LATENT),
            packet.ACK: lambda: rng.randbytes(4 * rng.randrange(20)),
            packet.UPDATE: self.message,
            packet.RECORDING: self.recording,
            packet.HELLO: self.hello,
            packet.HEALTH: self.health,
        }.get(kind, lambda: rng.randbytes(rng.randrange(60)))()
        return packet.encode_record(
            packet.Record(
                kind,
                self._device,
                self._survey,
                boot=1,
                sequence=self._sequence,
                event=self._sequence // 5,
                sample_time_us=1_700_000_000_000_000 + self._sequence,
                model_hash=MODEL_HASH,
                payload=payload,
            )
        )

    def message(self) -> bytes:
        """The payload of an UPDATE record."""
        rng = self.rng
        sha256 = rng.randbytes(32)
        return encode_message(
            rng.choice(
                (
                    Offer(
                        rng.randrange(1 << 16),
                        sha256,
                        1000,
                        rng.randbytes(40),
                        rng.randbytes(SIGNATURE_BYTES),
                    ),
                    ChunkRequest(sha256, rng.randrange(1 << 20), rng.randrange(1, 4096)),
                    Chunk(sha256, rng.randrange(1 << 20), rng.randbytes(rng.randrange(200))),
                    NotAvailable(sha256),
                    Report(rng.choice(("running", "failed", "declined")), rng.randrange(1, 100), "reason"),
                    ReportAck(rng.randrange(1, 100)),
                )
            )
        )

    def recording(self) -> bytes:
        """The payload of a RECORDING record."""
        rng = self.rng
        sha256 = rng.randbytes(32)
        offset, data = rng.randrange(1 << 20), rng.randbytes(1 + rng.randrange(200))
        return encode_recording_message(
            rng.choice(
                (
                    Fetch(rng.randrange(1000)),
                    Part(sha256, 1 + rng.randrange(1 << 20)),
                    PieceRequest(sha256, offset, rng.randrange(1, 4096)),
                    Piece(sha256, offset, data),
                    Wait(rng.randrange(1, 3600)),
                    End(),
                    NoRecording("reason"),
                )
            )
        )

    def hello(self) -> bytes:
        """The payload of a HELLO record."""
        return encode_health(Hello("0.1.0", "generic-linux", self.rng.randint(1, 600), 10_000, 3))

    def health(self) -> bytes:
        """The payload of a HEALTH record."""
        numbers = [self.rng.randrange(1 << 20) for _ in range(4)]
        return encode_health(
            Health(60, *numbers, next_sequence=self._sequence, temperature_mc=40_000, update_state="running")
        )

    def mutated_record(self) -> bytes:
        """A record with one to four mutations, some of which only a reader of its fields can tell."""
        data = bytearray(self.record())
        for _ in range(self.rng.randint(1, 4)):
            if self.rng.random() < 0.4 and len(data) >= packet.HEADER_BYTES:
                self._lie(data)
            else:
                data = self.mutated(data, self.record)
        return bytes(data)

    def mutated_message(self, honest: Callable[[], bytes]) -> bytes:
        """CBOR that ``honest`` makes, with one to four mutations."""
        data = bytearray(honest())
        for _ in range(self.rng.randint(1, 4)):
            if self.rng.random() < 0.2:
                place = self.rng.randint(0, len(data))
                data[place : place + self.rng.randrange(4)] = self.rng.choice(CBOR_LIES)
            else:
                data = self.mutated(data, honest)
        return bytes(data)

    def mutated_frame(self, seal: FrameAuthenticator) -> tuple[bytes, bytes]:
        """(what was sealed, bytes for the line): whole with a record that is wrong, or damaged after."""
        record = self.mutated_record() if self.rng.random() < 0.5 else self.record()
        frame = bytearray(cobs_encode(seal.close(record)) + b"\0")
        if self.rng.random() < 0.6:
            frame = self.mutated(frame, self.record)
        if self.rng.random() < 0.2:
            # COBS' own bytes: where the next zero is.
            frame[0:1] = bytes([self.rng.choice(TELLING_BYTES)])
        return record, bytes(frame)

    def mutated(self, data: bytearray, other: Callable[[], bytes]) -> bytearray:
        """One mutation of ``data``; ``other`` makes what it may be spliced with."""
        rng = self.rng
        a, b = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
        what = rng.randrange(9)
        if what == 0 and data:
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif what == 1 and data:
            data[rng.randrange(len(data))] = rng.choice(TELLING_BYTES)
        elif what == 2:
            del data[a:]
        elif what == 3:
            data += rng.randbytes(rng.randint(1, 300))
        elif what == 4:
            del data[a:b]
        elif what == 5:
            data[a:a] = data[a:b]
        elif what == 6:
            data[a:a] = rng.randbytes(rng.randint(1, 20))
        elif what == 7:
            data[a:] = other()[a:]
        else:
            data[a:b] = bytes([rng.choice(TELLING_BYTES)]) * (b - a)
        return data

    def _lie(self, data: bytearray) -> None:
        """Overwrite a field of the header, the payload's length most often."""
        place, form = (LENGTH_PLACE, "H") if self.rng.random() < 0.4 else self.rng.choice(FIELDS)
        highest = (1 << 8 * struct.calcsize(form)) - 1
        value = self.rng.choice((0, 1, highest, highest // 2 + 1, self.rng.randint(0, highest)))
        struct.pack_into("<" + form, data, place, value)
