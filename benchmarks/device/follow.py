"""How fast `epic data follow` is: many channels at once, live, from a stand-in server on this machine.

    python benchmarks/device/follow.py --channels 200 --seconds 60

Prints the share of one core that the follower takes, and for each event the time from its last record being sent to
its file being there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))
from seedlink_server import NS, Packet, SeedLinkServer

from physics.acquisition import Acquisition
from physics.files.seedlink import Following, follow
from physics.files.times import format_time

RATE_HZ = 1000
SOURCES, EVENT_S, SHOT_S = 5, 8.0, 1.5


def survey_of(channels: int) -> Acquisition:
    """OpenFWI's survey with one receiver a channel, on one device."""
    return Acquisition.from_dict(
        {
            **Acquisition.openfwi().to_dict(),
            "n_width": channels,
            "source_cells": [channels * i // SOURCES for i in range(SOURCES)],
            "receiver_cells": list(range(channels)),
            "device_receivers": [list(range(channels))],
        }
    )


def make_packets(names: list[str], start_ns: int, seconds: int) -> list[Packet]:
    """Noise of 12 bits in Steim-2 records of 512 bytes, in the order in which digitizers complete them."""
    from pymseed import DataEncoding, MS3Record

    noise = np.random.default_rng(0).integers(-1000, 1000, (seconds + 1) * RATE_HZ).astype(np.int32)
    packets = []
    for channel, name in enumerate(names):
        network, station, location, code = name.split(".")
        record = MS3Record(reclen=512, encoding=DataEncoding.STEIM2)
        record.formatversion = 2
        record.sourceid = f"FDSN:{network}_{station}_{location}_{'_'.join(code)}"
        record.samprate = RATE_HZ
        record.starttime = start_ns
        at_ns = start_ns
        # Each begins elsewhere in the noise, so that records do not end together.
        for data in record.generate(np.roll(noise, 37 * channel)[: seconds * RATE_HZ], "i"):
            count = MS3Record.parse(data).samplecnt
            end_ns = at_ns + (count - 1) * NS // RATE_HZ
            packets.append(Packet(name, at_ns, end_ns, data))
            at_ns += count * NS // RATE_HZ
    return sorted(packets, key=lambda packet: packet.end_ns)


def follower(following: Following, events: int, results: multiprocessing.Queue) -> None:
    """Follow, and put the time of each event's file, then the processor's time."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    begin = time.monotonic()
    follow(following, events, lambda said: results.put((time.time_ns(), said)), print)
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    results.put((cpu_s / (time.monotonic() - begin), used.ru_maxrss / 1024))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--channels", type=int, default=200)
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    names = [f"XX.R{n:03d}.00.GPZ" for n in range(options.channels)]
    survey = survey_of(options.channels)
    events = int((options.seconds - 2) // EVENT_S)
    packets = make_packets(names, 0, options.seconds)
    with tempfile.TemporaryDirectory() as folder, SeedLinkServer() as server:
        root = Path(folder)
        (root / "geometry.toml").write_text(f"receivers = {json.dumps(names)}\n")
        (root / "shots.csv").write_text("event,source,time\n")
        following = Following(
            server.address, root / "geometry.toml", root / "shots.csv", root / "out", survey
        )
        results: multiprocessing.Queue = multiprocessing.Queue()
        process = multiprocessing.get_context("fork").Process(
            target=follower, args=(following, events, results)
        )
        process.start()
        time.sleep(2.0)
        last_sent = serve(server, packets, root / "shots.csv", events)
        found = [results.get(timeout=60.0) for _ in range(events)]
        share, memory_mib = results.get(timeout=60.0)
        process.join()
    rate = len(packets) / options.seconds
    print(
        f"{options.channels} channels at {RATE_HZ} Hz, {rate:.0f} records/s: "
        f"{100 * share:.0f} % of a core, {memory_mib:.0f} MiB"
    )
    for event, (done_ns, said) in enumerate(found):
        print(f"{said}: {(done_ns - last_sent[event]) / NS:.2f} s after its last record was sent")


def serve(server: SeedLinkServer, packets: list[Packet], shots: Path, events: int) -> list[int]:
    """Send each record when its last sample is recorded, and log the shots; when each event's last one was sent."""
    from physics.files.live_buffers import decode_record

    begin_ns = time.time_ns() // NS * NS
    needed_ns = [
        round((event * EVENT_S + 1.0 + (SOURCES - 1) * SHOT_S + 1.0) * NS) for event in range(events)
    ]
    last_sent = [0] * events
    sent = logged = 0
    while sent < len(packets):
        now_ns = time.time_ns() - begin_ns
        while logged < events and now_ns > needed_ns[logged] - NS // 2:
            with shots.open("a") as file:
                for source in range(SOURCES):
                    shot_ns = begin_ns + round((logged * EVENT_S + 1.0 + source * SHOT_S) * NS)
                    file.write(f"{logged},{source},{format_time(shot_ns)}\n")
            logged += 1
        due = []
        while sent < len(packets) and packets[sent].end_ns <= now_ns:
            due.append(shifted(packets[sent], begin_ns))
            sent += 1
        server.feed_packets(due)
        for event, until_ns in enumerate(needed_ns):
            if any(packet.start_ns - begin_ns <= until_ns for packet in due):
                last_sent[event] = time.time_ns()
        time.sleep(0.05)
    assert decode_record(shifted(packets[0], begin_ns).data).start_ns == begin_ns
    return last_sent


def shifted(packet: Packet, by_ns: int) -> Packet:
    """The packet with its times moved by whole seconds, in its header's start time as well."""
    import struct
    from datetime import UTC, datetime

    moment_ns = packet.start_ns + by_ns
    moment = datetime.fromtimestamp(moment_ns // NS, UTC)
    data = bytearray(packet.data)
    order = ">" if data[20:22] == b"\x07\xb2" else "<"
    day = moment.timetuple().tm_yday
    struct.pack_into(f"{order}HHBBB", data, 20, moment.year, day, moment.hour, moment.minute, moment.second)
    return Packet(packet.name, moment_ns, packet.end_ns + by_ns, bytes(data))


if __name__ == "__main__":
    main()
