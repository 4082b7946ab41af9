"""miniSEED 2 and 3, by EarthScope's libmseed (pymseed)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from physics.files.field.traces import ChannelRecords, FieldFileError, ReadOptions, Segment

NUMERIC = ("i", "f", "d")


class MiniseedFormat:
    """Records of channels; says neither where receivers are nor when shots were."""

    name = "miniSEED"
    suffixes = (".mseed", ".miniseed", ".ms", ".mseed3", ".ms3")

    def matches(self, head: bytes, size: int) -> bool:
        if head[:2] == b"MS" and head[2:3] == b"\x03":
            return True
        # Version 2: six digits of a sequence number, then a quality.
        return (
            len(head) >= 48 and head[6:7] in (b"D", b"R", b"Q", b"M") and not head[:6].strip(b"0123456789 \0")
        )

    def read(self, path: Path, options: ReadOptions) -> ChannelRecords:
        from pymseed import MS3Record, sourceid2nslc
        from pymseed.exceptions import PymseedError

        if options.interval_s is not None:
            raise FieldFileError("--interval-ms: miniSEED records say their rate; leave it out")
        pieces: dict[str, list[Segment]] = {}
        steps = []
        try:
            for record in MS3Record.from_file(str(path), unpack_data=False):
                # Logs of a recorder are text, and state of health has no rate.
                if record.samplecnt <= 0 or record.samprate <= 0 or record.encoding == 0:
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
            reason = " ".join(str(error).split())
            if not pieces:
                raise FieldFileError(f"{path}: not a whole miniSEED file ({reason}); copy it again") from None
            steps.append(f"{path.name} is damaged, what follows is not read: {reason}")
        if not pieces:
            raise FieldFileError(f"{path}: expected records of samples, found none")
        return ChannelRecords(pieces, tuple(steps))


FORMAT = MiniseedFormat()
