"""Attack the ROUTER, the gateway and the page while honest devices send: refusals, counters and the honest rate.

    python benchmarks/robustness/intruders.py [--records-per-s 500] [--quiet-s 10] [--silent 1000] [--flood-s 15]
    further: [--out results.json]

The centre is a process with keys, a ROUTER, a gateway's TCP port and the page, all of it but the network that decodes.
A second process runs four honest devices, two on the ROUTER and two on the gateway's port. Then the attacks run in
turn, while the silent connections stay open:

    silent      connections to each port that send nothing; half of those to the ROUTER send ZeroMQ's greeting
    no key      ZeroMQ without CURVE      wrong key   CURVE with a key that is not allowed, or for another centre
    forged      a device with its own key claims another device's number
    replayed    a device's frames, byte for byte, on another connection; a whole CURVE conversation likewise
    oversized   a message past ZeroMQ's limit, one past the record's, a frame without an end
    page        silent connections to the page, while one request a second is timed
    stuck       an allowed device repeats one event number (--flood-s), and so adds revisions without end
    endless     multipart messages that never end, and very long ones that do, by allowed keys (--flood-s each)
    revoked     a device's key is revoked while it sends on both ports

Refusals are compared with the centre's counters, and the store with the honest records. The centre's resident memory is
read ten times a second. Real attackers are on other machines, so attacker processes run at a lower priority than the
centre.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import zmq

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))
from chaos_world import World, tiny_world
from honest import Sender, open_link
from ports import free_port
from waiting import wait_until

from central.security.keys import allow, new_keys, revoke
from firmware_py.links.keys import CurveKeys, read_key, read_secret
from firmware_py.links.zeromq import HIGH_WATER_MARK, MAX_MESSAGE_BYTES, open_dealer
from firmware_py.protocol.frame_authenticator import UPLINK, Mac
from firmware_py.protocol.framing import encode_frame
from testbed.processes import Process, resident_mib

SUPPORT = Path(__file__).parents[2] / "tests" / "support"
HONEST = [(0, "zmq"), (1, "zmq"), (2, "tcp"), (3, "tcp")]
INTRUDER = 4
FORGED = b"\xee" * 8
STRANGERS = 50
TIMEOUT_S = 90.0
REVOKED_WITHIN_S = 5.0
# Of the centre's resident memory above idle, and the longest answer of the page.
MOST_MIB = 300.0
PAGE_WITHIN_S = 2.0
THIEF = "gateway-thief"


class Relay:
    """Passes one connection on to ``port`` and keeps what went up."""

    def __init__(self, port: int) -> None:
        self.up = bytearray()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._far = socket.create_connection(("127.0.0.1", port))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        near, _ = self._listener.accept()
        threading.Thread(target=self._pass, args=(self._far, near, None), daemon=True).start()
        self._pass(near, self._far, self.up)

    @staticmethod
    def _pass(source: socket.socket, sink: socket.socket, kept: bytearray | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if kept is not None:
                    kept += data
                sink.sendall(data)


class Watch:
    """The centre's resident memory ten times a second, and the page's answers once a second."""

    def __init__(self, pid: int, page: str) -> None:
        self.mib: list[float] = []
        self.answers_s: list[float] = []
        self.unanswered = 0
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._read_memory, args=(pid,), daemon=True),
            threading.Thread(target=self._ask, args=(page,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _read_memory(self, pid: int) -> None:
        while not self._ended.wait(0.1):
            self.mib.append(resident_mib(pid))

    def _ask(self, page: str) -> None:
        while not self._ended.wait(1.0):
            started_s = time.monotonic()
            try:
                with urllib.request.urlopen(f"{page}/api/events", timeout=TIMEOUT_S) as answer:
                    answer.read()
                self.answers_s.append(time.monotonic() - started_s)
            except OSError:
                self.unanswered += 1

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()


class Attack:
    """The attacks of the module docstring, in its order, on the centre of ``folder``; ``found`` has their figures."""

    def __init__(
        self, folder: Path, ports: tuple[int, int, int], flood_s: float, model_hash: bytes, latent: int
    ) -> None:
        self._keys = folder / "keys"
        self._port, self._tcp_port, self._page_port = ports
        self._flood_s = flood_s
        self._model_hash, self._latent = model_hash, latent
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 4096)
        self.found: dict[str, object] = {}

    def _sender(self, over: str, boot: int) -> Sender:
        link = open_link(
            self._keys, INTRUDER, f"tcp://127.0.0.1:{self._port}", f"127.0.0.1:{self._tcp_port}", over
        )
        return Sender(link, INTRUDER, self._model_hash, self._latent, boot)

    @staticmethod
    def _until(sender: Sender, condition, what: str) -> None:
        def met() -> bool:
            sender.turn()
            return condition()

        wait_until(met, TIMEOUT_S, what)

    def silence(self, connections: int) -> None:
        ports = [str(self._port), str(self._tcp_port), str(self._page_port)]
        self._silent = subprocess.Popen(
            [sys.executable, str(SUPPORT / "silent.py"), str(connections), *ports],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.found["silent"] = len(ports) * connections
        self.found["silent_at_router"] = connections
        if self._silent.stdout.readline().strip() != "open":
            raise RuntimeError("the silent connections could not be opened")

    def newcomer(self) -> None:
        """Connect a new device while the silent connections hold both ports."""
        for over in ("zmq", "tcp"):
            started_s = time.monotonic()
            sender = self._sender(over, boot=2 if over == "zmq" else 3)
            sender.record()
            self._until(sender, lambda sender=sender: not sender.waiting, f"a newcomer over {over}")
            self.found[f"newcomer_{over}_s"] = round(time.monotonic() - started_s, 2)
            sender.link.close()

    def strangers(self) -> None:
        """Connect without a key, with an unknown key and with another centre's key; none may get an answer."""
        centre = read_key(self._keys / "centre.public")
        other, _ = zmq.curve_keypair()
        dealers = []
        for server in (None, centre, other):
            for _ in range(STRANGERS):
                dealer = open_dealer(
                    self._context, CurveKeys(server, *zmq.curve_keypair()) if server else None
                )
                dealer.setsockopt(zmq.IMMEDIATE, 0)
                dealer.connect(f"tcp://127.0.0.1:{self._port}")
                dealer.send(b"let me in")
                dealers.append(dealer)
        time.sleep(3.0)
        self.found["strangers"] = len(dealers)
        self.found["strangers_answered"] = sum(bool(dealer.poll(0)) for dealer in dealers)
        for dealer in dealers:
            dealer.close(0)

    def forge(self, records: int = 20) -> None:
        sender = self._sender("zmq", boot=4)
        for _ in range(records):
            sender.record(FORGED, device=0)
        # A record that was sent twice on a busy machine is refused twice.
        self._until(sender, lambda: len(sender.refused) >= records, "the refusals")
        sender.link.close()
        sender = self._sender("tcp", boot=5)
        for _ in range(records):
            sender.record(FORGED, device=0)
        for _ in range(100):
            sender.turn()
            time.sleep(0.01)
        self.found.update(forged=2 * records, forged_acknowledged=records - len(sender.waiting))
        sender.link.close()

    def replay(self, records: int = 20) -> None:
        """Send a device's recorded frames again, and a whole recorded CURVE conversation."""
        seal = Mac(read_secret(self._keys / f"device-{INTRUDER}" / f"device-{INTRUDER}.mac"), UPLINK)
        sender = self._sender("tcp", boot=6)
        for _ in range(records):
            sender.record()
        frames = b"".join(encode_frame(data, seal) for _, _, data in sender.waiting.values())
        self._until(sender, lambda: not sender.waiting, "the acknowledgements of what is replayed later")
        sender.link.close()
        with socket.create_connection(("127.0.0.1", self._tcp_port), TIMEOUT_S) as thief:
            for _ in range(2):
                thief.sendall(frames)
                time.sleep(0.5)
        relay = Relay(self._port)
        link = open_link(self._keys, INTRUDER, f"tcp://127.0.0.1:{relay.port}", "", "zmq")
        sender = Sender(link, INTRUDER, self._model_hash, self._latent, boot=7)
        for _ in range(records):
            sender.record()
        self._until(sender, lambda: not sender.waiting, "the acknowledgements of the conversation")
        link.close()
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self._port), TIMEOUT_S) as thief,
        ):
            thief.sendall(relay.up)
            thief.settimeout(5.0)
            while thief.recv(1 << 16):
                pass
        self.found["replayed"] = 2 * records

    def oversize(self) -> None:
        """Send oversized messages: ZeroMQ closes the connection at its limit; the others count as damaged."""
        sender = self._sender("zmq", boot=8)
        sender.record()
        self._until(sender, lambda: not sender.waiting, "an honest record first")
        sender.link.send(bytes(100_000))
        sender.link.send(bytes(2 * MAX_MESSAGE_BYTES))
        sender.record()
        self._until(sender, lambda: not sender.waiting, "an honest record after")
        sender.link.close()
        seal = Mac(read_secret(self._keys / f"device-{INTRUDER}" / f"device-{INTRUDER}.mac"), UPLINK)
        sender.record()
        (_, _, data), *_ = sender.waiting.values()
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self._tcp_port), TIMEOUT_S) as peer,
        ):
            # A good frame first, so that the listener has admitted the connection when the endless one comes.
            peer.sendall(encode_frame(data, seal))
            time.sleep(0.5)
            for _ in range(20):
                peer.sendall(b"\1" * 100_000)
            peer.sendall(b"\0")
            time.sleep(0.5)

    def stick(self) -> None:
        """Send records of one event number only, as a device with a stuck counter does."""
        sender = self._sender("zmq", boot=11)
        end_s = time.monotonic() + self._flood_s
        while time.monotonic() < end_s:
            while len(sender.waiting) < HIGH_WATER_MARK:
                sender.record(event=1 << 20)
            sender.turn()
        self._until(sender, lambda: not sender.waiting, "the last acknowledgements of one event")
        self.found["stuck_records"] = sender.recorded
        sender.link.close()

    def endless(self) -> None:
        """Send multipart messages that never end, in parts of 64 kB and 40 B, and messages of 100,000 parts."""
        self.found["endless_mib"], self.found["endless_cut_off"] = 0.0, 0
        for name, *options in (
            (f"device-{INTRUDER}", "--part-bytes", "65536"),
            (f"device-{INTRUDER}", "--part-bytes", "40"),
            (THIEF, "--part-bytes", "1", "--parts", "100000"),
        ):
            client = [sys.executable, str(SUPPORT / "zmtp.py"), str(self._port), str(self._flood_s)]
            children = [
                subprocess.Popen(
                    ["nice", "-n", "10", *client, str(self._keys / name), *options],
                    stdout=subprocess.PIPE,
                    text=True,
                )
                for _ in range(2)
            ]
            for child in children:
                told = json.loads(child.communicate(timeout=self._flood_s + TIMEOUT_S)[0])
                self.found["endless_mib"] += told["sent"] / (1 << 20)
                self.found["endless_cut_off"] += told["cut_off"]
        self.found["endless_mib"] = round(self.found["endless_mib"], 1)

    def revoke(self) -> None:
        """Revoke a key; measure how long it still works on open connections."""
        senders = [self._sender("zmq", boot=9), self._sender("tcp", boot=10)]
        for sender in senders:
            sender.record()
            self._until(sender, lambda sender=sender: not sender.waiting, "a record while it is allowed")
        revoke(self._keys, f"device-{INTRUDER}")
        revoked_s = last_s = time.monotonic()
        sent_after = 0
        while time.monotonic() - revoked_s < 2 * REVOKED_WITHIN_S:
            for sender in senders:
                sender.record()
                sent_after += time.monotonic() - revoked_s > REVOKED_WITHIN_S
                if sender.turn():
                    last_s = time.monotonic()
            time.sleep(0.05)
        self.found["revoked_after_s"] = round(last_s - revoked_s, 2)
        self.found["revoked_sent_after_5_s"] = sent_after
        for sender in senders:
            sender.link.close()

    def run_steps(self) -> None:
        """Run every attack in turn."""
        for step in (
            self.newcomer,
            self.strangers,
            self.forge,
            self.replay,
            self.oversize,
            self.stick,
            self.endless,
            self.revoke,
        ):
            step()

    def leave(self) -> None:
        """Count the silent connections that the centre has closed."""
        said, _ = self._silent.communicate(timeout=TIMEOUT_S)
        self.found["silent_sent_away"] = int(said)
        self._context.destroy(0)


def rate(log: Path, start_us: int, end_us: int) -> tuple[float, float]:
    """Honest records acknowledged a second between two times, and the 95th percentile of their waits, in s."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    seconds = [
        row for row in rows if row["message"] == "second" and start_us + 1e6 < row["timestamp_us"] <= end_us
    ]
    waits_s = [wait for row in seconds for wait in row["waits_s"]]
    return len(waits_s) / sum(row["seconds"] for row in seconds), statistics.quantiles(waits_s, n=20)[-1]


def write_settings(folder: Path, world: World, ports: tuple[int, int, int]) -> None:
    """Write the keys, central.toml and honest.json. ``ports`` are those of the ROUTER, the gateway and the page."""
    port, tcp_port, page_port = ports
    for name in (*(f"device-{device}" for device in range(world.n_devices)), THIEF):
        new_keys(folder / "keys", name)
        allow(folder / "keys", name)
    (folder / "central.toml").write_text(
        f'[central]\nlisten = "tcp://127.0.0.1:{port}"\nkeys = "keys"\ndata_dir = "central"\n'
        f'log = "central.jsonl"\npictures = false\npage_listen = "127.0.0.1:{page_port}"\n'
        '[[model]]\nbundle = "bundle"\ndecoder = "none"\n'
        f'[gateway]\ntcp = "127.0.0.1:{tcp_port}"\n'
    )
    who = {
        "zmq": f"tcp://127.0.0.1:{port}",
        "tcp": f"127.0.0.1:{tcp_port}",
        "model_hash": world.bundle.model_hash.hex(),
        "latent": world.bundle.manifest["output"]["shape"][-1],
        "devices": HONEST,
    }
    (folder / "honest.json").write_text(json.dumps(who))


def benchmark(folder: Path, given: argparse.Namespace) -> dict:
    world = tiny_world(folder)
    latent = world.bundle.manifest["output"]["shape"][-1]
    ports = (free_port(), free_port(), free_port())
    write_settings(folder, world, ports)
    centre = Process("central", [str(SUPPORT / "centre_process.py"), str(folder / "central.toml")], folder)
    centre.wait_for("ready", TIMEOUT_S)
    honest = Process("honest", [str(SUPPORT / "honest.py"), str(folder), str(given.records_per_s)], folder)
    attack = Attack(folder, ports, given.flood_s, world.bundle.model_hash, latent)
    watch = Watch(centre.pid, f"http://127.0.0.1:{ports[2]}")
    try:
        honest.wait_for("second", TIMEOUT_S)
        marks_us = [time.time_ns() // 1000]
        time.sleep(given.quiet_s)
        marks_us.append(time.time_ns() // 1000)
        idle_mib = max(watch.mib)
        attack.silence(given.silent)
        attack.run_steps()
        # Both ports allow a connection 10 s.
        time.sleep(max(15.0 - (time.time_ns() // 1000 - marks_us[1]) / 1e6, 0.0))
        marks_us.append(time.time_ns() // 1000)
        attack.leave()
        (folder / "honest.stop").touch()
        honest.wait(60.0)
    finally:
        watch.end()
        honest.end()
        centre.end(60.0)
    log = folder / "honest.jsonl"
    before, before_p95_s = rate(log, *marks_us[:2])
    under, under_p95_s = rate(log, *marks_us[1:])
    ended = honest.entries("ended")[-1]
    return {
        **counted(centre),
        **kept(folder / "central" / "central.sqlite"),
        **attack.found,
        "honest_recorded": ended["recorded"],
        "honest_unacknowledged": ended["unacknowledged"],
        "honest_refused": ended["refused"],
        "before_per_s": round(before, 1),
        "under_per_s": round(under, 1),
        "ratio": round(under / before, 3),
        "before_p95_ms": round(1000 * before_p95_s, 1),
        "under_p95_ms": round(1000 * under_p95_s, 1),
        "idle_mib": round(idle_mib, 1),
        "most_mib": round(max(watch.mib), 1),
        "page_answers": len(watch.answers_s),
        "page_unanswered": watch.unanswered,
        "page_slowest_s": round(max(watch.answers_s), 2),
        "attack_s": round((marks_us[2] - marks_us[1]) / 1e6, 1),
    }


def counted(centre: Process) -> dict[str, int]:
    """Return the counters of the centre's receiver, and of the gateway's listener and lines."""
    stopped = centre.entries("stopped")[-1]
    lines = {row["name"]: row for what in ("listener", "line") for row in centre.entries(what)}
    names = (
        "auth_rejected",
        "not_allowed",
        "identity_mismatch",
        "damaged",
        "duplicates",
        "refused",
        "cut_off",
    )
    return {
        **{name: stopped.get(name, 0) for name in names},
        **{
            f"line_{what}": sum(row.get(what, 0) for row in lines.values())
            for what in ("unauthentic", "damaged")
        },
    }


def kept(path: Path) -> dict[str, int]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        (forged,) = database.execute("SELECT count(*) FROM record WHERE payload = ?", (FORGED,)).fetchone()
        (records,) = database.execute("SELECT count(*) FROM record WHERE device < ?", (INTRUDER,)).fetchone()
    return {"forged_kept": forged, "honest_kept": records}


def faults(result: dict) -> list[str]:
    """Return a line for each check that failed."""
    checks = {
        "a stranger was answered": result["strangers_answered"] > 0,
        "strangers and silent connections at the ROUTER are not all counted": result["auth_rejected"]
        < result["strangers"] + result["silent_at_router"],
        "silent connections were left": result["silent_sent_away"] < result["silent"],
        "a forged record was taken": result["forged_kept"] + result["forged_acknowledged"] > 0,
        "forged records are not all counted": result["identity_mismatch"] + result["line_unauthentic"]
        < result["forged"],
        "replays are not all counted": result["duplicates"] < result["replayed"],
        "oversized ones are not counted": result["damaged"] < 1 or result["line_damaged"] < 1,
        "a revocation took longer than 5 s": result["revoked_after_s"] > REVOKED_WITHIN_S,
        "revoked ones are not counted": result["not_allowed"] < 1,
        "honest records were lost or refused": result["honest_unacknowledged"] + result["honest_refused"] > 0
        or result["honest_kept"] != result["honest_recorded"],
        "messages without end were not cut off": min(result["cut_off"], result["endless_cut_off"]) < 1,
        "the centre's memory grew": result["most_mib"] - result["idle_mib"] > MOST_MIB,
        "the page did not answer": result["page_unanswered"] > 0,
        "the page was slow": result["page_slowest_s"] > PAGE_WITHIN_S,
        "the honest rate fell": result["ratio"] < 0.95,
    }
    return [fault for fault, found in checks.items() if found]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records-per-s", type=float, default=500.0, help="of the honest devices together")
    parser.add_argument("--quiet-s", type=float, default=10.0, help="before the attack")
    parser.add_argument("--silent", type=int, default=1000, help="connections to each port")
    parser.add_argument("--out", type=Path, help="results as JSON")
    parser.add_argument("--flood-s", type=float, default=15.0, help="of each flood by an allowed key")
    given = parser.parse_args()
    if given.records_per_s < len(HONEST) or given.quiet_s < 3 or given.silent < 1 or given.flood_s < 1:
        parser.error("expected --records-per-s from 4, --quiet-s from 3, --silent and --flood-s from 1")
    with tempfile.TemporaryDirectory() as folder:
        result = benchmark(Path(folder), given)
    if given.out:
        given.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
    wrong = faults(result)
    print(
        f"{'all refused and counted' if not wrong else 'NOT WELL: ' + '; '.join(wrong)}; revoked after "
        f"{result['revoked_after_s']} s; a newcomer is in after {result['newcomer_zmq_s']} s (ROUTER) and "
        f"{result['newcomer_tcp_s']} s (gateway); honest devices {result['before_per_s']} records/s before, "
        f"{result['under_per_s']} under {result['attack_s']:.0f} s of attack: ratio {result['ratio']} (95 % "
        f"acknowledged within {result['before_p95_ms']} and {result['under_p95_ms']} ms)"
    )
    print(
        f"stuck event {result['stuck_records']} records, endless messages {result['endless_mib']} MiB; memory "
        f"{result['idle_mib']} MiB idle, at most {result['most_mib']} (+{result['most_mib'] - result['idle_mib']:.0f}, "
        f"bound {MOST_MIB:.0f}); page: {result['page_answers']} answers within {result['page_slowest_s']} s, "
        f"{result['page_unanswered']} missing; honest rate {100 * result['ratio']:.1f} % (bound 95)"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
