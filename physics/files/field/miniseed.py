"""Read miniSEED 2 and 3 with EarthScope's libmseed (pymseed)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from physics.files.field.traces import ChannelRecords, FieldFileError, ReadOptions, Segment

NUMERIC = ("i", "f", "d")
# Encoding of log records.
TEXT = 0


class MiniseedFormat:
    """Continuous records by channel; the format holds neither receiver positions nor shot times."""

    name = "miniSEED"
    suffixes = (".mseed", ".miniseed", ".ms", ".mseed3", ".ms3")

    def matches(self, head: bytes, size: int) -> bool:
        if head[:2] == b"MS" and head[2:3] == b"\x03":
            return True
        # Version 2: six digits of a sequence number, then a quality, or V of a full SEED volume's header.
        return len(head) >= 48 and head[6:7] in b"DRQMV" and not head[:6].strip(b"0123456789 \0")

    def read(self, path: Path, options: ReadOptions) -> ChannelRecords:
        if options.interval_s is not None:
            raise FieldFileError("--interval-ms: miniSEED records say their rate; leave it out")
        steps = []
        pieces, reason = _read_records(path, skip_others=False)
        if reason:
            # Full SEED volumes have other records before the data, and copies may be damaged.
            pieces, _ = _read_records(path, skip_others=True)
            if not pieces:
                raise FieldFileError(f"{path}: not a whole miniSEED file ({reason}); copy it again")
            steps.append(f"{path.name} has parts that are not whole miniSEED records, left out: {reason}")
        if not pieces:
            raise FieldFileError(f"{path}: expected records of samples, found none")
        return ChannelRecords(pieces, tuple(steps))


def _read_records(path: Path, skip_others: bool) -> tuple[dict[str, list[Segment]], str]:
    """Read records of samples by SEED id, and why reading ended early; empty if it did not."""
    from pymseed import MS3Record, sourceid2nslc
    from pymseed.exceptions import PymseedError

    pieces: dict[str, list[Segment]] = {}
    try:
        for record in MS3Record.from_file(str(path), unpack_data=False, skip_not_data=skip_others):
            # Logs of a recorder are text, and state of health has no rate.
            if record.samplecnt <= 0 or record.samprate <= 0 or record.encoding == TEXT:
                continue
            record.unpack_data()
            if record.sampletype not in NUMERIC:
                continue
            try:
                name = ".".join(sourceid2nslc(record.sourceid))
            except (PymseedError, ValueError):
                name = record.sourceid
            samples = np.array(record.np_datasamples, np.float64)
            pieces.setdefault(name, []).append(Segment(record.starttime, 1.0 / record.samprate, samples))
    except (PymseedError, ValueError) as error:
        return pieces, " ".join(str(error).split())
    return pieces, ""


FORMAT = MiniseedFormat()
