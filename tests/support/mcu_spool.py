"""Records in and out of a microcontroller's spool."""

import struct

from firmware_py.protocol import packet

OWNER = (3, 1)
BOOT = 1_800_000_000


def put(spool, sequence, boot=BOOT, device=3):
    data = packet.encode_record(
        packet.Record(
            packet.LATENT, device, 1, boot, sequence, event=sequence, payload=bytes([sequence % 256] * 8)
        )
    )
    spool.record[: len(data)] = data
    return spool.append(len(data))


def forget(spool, sequence, boot=BOOT):
    key = struct.pack("<II", boot, sequence)
    slot = spool.find(key, 0, key, 4)
    if slot >= 0:
        spool.forget(slot)
    return slot >= 0


def waiting(spool):
    """(boot, sequence) of what waits, oldest first, as it stands on the flash."""
    found = []
    for i in range(spool.span):
        slot = (spool.oldest + i) % spool.n
        if spool.state[slot]:
            record = packet.decode_record(bytes(spool.record[: spool.read(slot)]))
            assert record.payload == bytes([record.sequence % 256] * 8)
            found.append((record.boot, record.sequence))
    assert len(found) == spool.waiting
    assert spool.first_key() == (found[0] if found else None)
    return found
