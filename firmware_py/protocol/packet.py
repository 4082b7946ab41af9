"""One record on the wire, the same on every link; runs unchanged on MicroPython and CPython.

Little-endian, 38 bytes of header, then the payload. New fields are appended, never re-used.

    offset size field
    0      2    magic b"EP"
    2      1    version
    3      1    type
    4      2    device
    6      2    survey
    8      4    boot      increases by one each time a device starts
    12     4    sequence  from 1 within a boot
    16     4    event
    20     8    sample time, microseconds since 1970; 0 while the device has no clock
    28     8    model hash: first 8 bytes of the encoder's SHA-256
    36     2    payload length
    38     ...  payload
"""

import struct

from firmware_py.errors import FirmwareError

MAGIC = b"EP"
VERSION = 1

LATENT = 1
ACK = 2
HELLO = 3
HEALTH = 4
UPDATE = 5
REFUSAL = 6
RECORDING = 7
TYPES = (LATENT, ACK, HELLO, HEALTH, UPDATE, REFUSAL, RECORDING)

HEADER = "<2sBBHHIIIQ8sH"
HEADER_BYTES = 38
MAX_PAYLOAD_BYTES = 65535
MAX_BOOT = 0xFFFFFFFF
NO_MODEL = b"\0" * 8


class PacketError(FirmwareError):
    """The bytes are not a record, or a field is out of range."""


class Record:
    """Record; the header's fields, and ``payload`` bytes."""

    __slots__ = (
        "boot",
        "device",
        "event",
        "model_hash",
        "payload",
        "sample_time_us",
        "sequence",
        "survey",
        "type",
    )

    # Large: one parameter for each field of the record; MicroPython has no dataclasses.
    def __init__(
        self,
        type,
        device,
        survey,
        boot,
        sequence,
        event=0,
        sample_time_us=0,
        model_hash=NO_MODEL,
        payload=b"",
    ):
        self.type = type
        self.device = device
        self.survey = survey
        self.boot = boot
        self.sequence = sequence
        self.event = event
        self.sample_time_us = sample_time_us
        self.model_hash = model_hash
        self.payload = payload

    def _key(self):
        return tuple(getattr(self, name) for name in self.__slots__)

    def __eq__(self, other):
        return isinstance(other, Record) and self._key() == other._key()

    def __hash__(self):
        return hash(self._key())

    def __repr__(self):
        return "Record(type=%d, device=%d, survey=%d, boot=%d, sequence=%d, event=%d, %d bytes)" % (
            self.type,
            self.device,
            self.survey,
            self.boot,
            self.sequence,
            self.event,
            len(self.payload),
        )


def encode_record(record):
    """Return the bytes of a record.

    Raises:
        PacketError: A field is out of range.
    """
    if len(record.payload) > MAX_PAYLOAD_BYTES:
        raise PacketError("payload: expected at most 65535 bytes, got %d" % len(record.payload))
    if record.type not in TYPES or len(record.model_hash) != 8:
        raise PacketError("record: expected a known type and a model hash of 8 bytes, got %r" % record)
    # Check explicitly: MicroPython's struct wraps numbers that do not fit.
    for name, bits in _WIDTHS:
        if not 0 <= getattr(record, name) < 1 << bits:
            raise PacketError("%s: expected 0 to 2**%d - 1, got %d" % (name, bits, getattr(record, name)))
    header = struct.pack(
        HEADER,
        MAGIC,
        VERSION,
        record.type,
        record.device,
        record.survey,
        record.boot,
        record.sequence,
        record.event,
        record.sample_time_us,
        record.model_hash,
        len(record.payload),
    )
    return header + record.payload


_WIDTHS = (
    ("device", 16),
    ("survey", 16),
    ("boot", 32),
    ("sequence", 32),
    ("event", 32),
    ("sample_time_us", 64),
)


def decode_record(data):
    """Decode ``data``, which must hold exactly one record.

    Raises:
        PacketError: The bytes are not a record.
    """
    if len(data) < HEADER_BYTES:
        raise PacketError("record: expected at least %d bytes, got %d" % (HEADER_BYTES, len(data)))
    (magic, version, kind, device, survey, boot, sequence, event, sample_time_us, model_hash, length) = (
        struct.unpack(HEADER, bytes(data[:HEADER_BYTES]))
    )
    if magic != MAGIC:
        raise PacketError("record: expected magic %r, got %r" % (MAGIC, magic))
    if version != VERSION:
        raise PacketError("record: expected version %d, got %d; update the older side" % (VERSION, version))
    if kind not in TYPES:
        raise PacketError("record: unknown type %d" % kind)
    if len(data) != HEADER_BYTES + length:
        raise PacketError(
            "record: header says %d bytes of payload, got %d" % (length, len(data) - HEADER_BYTES)
        )
    return Record(
        kind,
        device,
        survey,
        boot,
        sequence,
        event,
        sample_time_us,
        model_hash,
        bytes(data[HEADER_BYTES:]),
    )


def acknowledge(record, more=()):
    """Return an acknowledgement of ``record``, and of the sequences ``more`` of the same device and boot."""
    payload = struct.pack("<%dI" % len(more), *more)
    return Record(ACK, record.device, record.survey, record.boot, record.sequence, payload=payload)


def acknowledged_sequences(ack):
    """Return the sequences that an acknowledgement names.

    Raises:
        PacketError: The payload has the wrong length.
    """
    if len(ack.payload) % 4:
        raise PacketError("acknowledgement: payload of %d bytes is no list of uint32" % len(ack.payload))
    return (ack.sequence,) + struct.unpack("<%dI" % (len(ack.payload) // 4), ack.payload)


def refuse(record, reason):
    """Return a refusal of ``record``: it will never be stored, so the device must not send it again."""
    payload = reason.encode("utf-8")[:256]
    return Record(REFUSAL, record.device, record.survey, record.boot, record.sequence, payload=payload)
