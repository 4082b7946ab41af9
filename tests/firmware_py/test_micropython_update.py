"""Updates of a microcontroller over its link, under real MicroPython against a centre that a test plays."""

import contextlib
import json
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import micropython_unix
import numpy as np
import pytest
from nacl.signing import SigningKey
from releases import KEY, OTHER_ENCODER, FakeRollout, make_release, sign, write_public_key
from tiny import ENCODER, SHAPE
from waiting import wait_until

from boards.fit.epicnn import compile_encoder
from boards.install.micropython import mcu
from firmware_py.inference.bundle import load_bundle
from firmware_py.protocol import packet
from firmware_py.protocol.framing import Deframer, encode_frame

pytestmark = [pytest.mark.emulated, pytest.mark.slow]
STUBS = Path(__file__).parents[1] / "support" / "micropython" / "stock"
START = "from firmware_py.micropython.start import start\nstart()\n"
PATIENCE_S = 120.0


class Centre:
    """A gateway on TCP that acknowledges records and answers UPDATE records as ``rollout`` does."""

    def __init__(self, rollout):
        self.rollout = rollout
        self.hashes = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        deframer = Deframer()
        with contextlib.suppress(OSError), connection:
            while data := connection.recv(4096):
                for one in deframer.feed(data):
                    record = packet.decode_record(one)
                    for answer in self._answers(record):
                        connection.sendall(encode_frame(packet.encode_record(answer)))

    def _answers(self, record):
        if record.type == packet.UPDATE:
            self.hashes.append(record.model_hash)
            return self.rollout.answers(record)
        return [packet.acknowledge(record)] if record.type == packet.LATENT else []

    def close(self):
        self._listener.close()


class Board:
    """A board that is started again whenever it resets, until it is closed."""

    def __init__(self, folder, endpoint, key=KEY, in_place=False, **update):
        self.folder = folder
        folder.mkdir()
        for path in STUBS.glob("*.py"):
            shutil.copy(path, folder)
        make_release(folder / "bundle", "installed", ENCODER, compiled(ENCODER))
        (folder / "bundle" / "encoder.tflite").unlink()
        if in_place:
            make_in_advance(folder)
        write_public_key(folder / "signing.public", key)
        config = {
            "device": 0,
            "board": "a-board",
            "insecure": True,
            "link": {"kind": "tcp", "endpoint": endpoint},
            "source": {"kind": "replay", "path": "gathers.npy", "step": 1e-3},
            "update": {"key": "signing.public", **update},
        }
        np.save(folder / "gathers.npy", np.ones((1, *SHAPE), "<i2")[..., :3])
        (folder / "device.json").write_text(json.dumps(config))
        self.starts = 0
        self._over = False
        self._process = None
        (folder / "said.txt").touch()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        said = (self.folder / "said.txt").open("ab")
        environment = {"MICROPYPATH": f"{self.folder}:{micropython_unix.ROOT}:.frozen"}
        while not self._over:
            self.starts += 1
            command = [*micropython_unix.command(), "-c", START]
            self._process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=said, stderr=subprocess.STDOUT
            )
            self._process.wait()
        said.close()

    def kill(self):
        if self._process:
            self._process.kill()

    def said(self):
        return (self.folder / "said.txt").read_text()

    def close(self):
        self._over = True
        self.kill()
        self._thread.join()


def make_in_advance(folder):
    """The files as the installer makes them on FAT."""
    paths = [folder / "bundle" / name for name in ("manifest.json", "encoder.epicnn")]
    files = mcu._with_slots({f"bundle/{path.name}": mcu._padded(path.read_bytes()) for path in paths})
    for path, data in files.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(data)


def compiled(encoder):
    return {"encoder.epicnn": compile_encoder(encoder)}


@contextlib.contextmanager
def updating(folder, archive, version=1, hears=lambda report: True, **board):
    with (
        contextlib.closing(Centre(FakeRollout(archive, version, hears))) as centre,
        contextlib.closing(Board(folder / "board", centre.endpoint, **board)) as one,
    ):
        yield centre, one


@pytest.fixture
def new(tmp_path):
    return make_release(tmp_path / "new", "new", OTHER_ENCODER, compiled(OTHER_ENCODER))


def sizes_of(board):
    return {path.name: path.stat().st_size for path in board.folder.glob("bundle*/*")}


def told(centre, state, version):
    return [one for one in centre.rollout.reports if (one.state, one.version) == (state, version)]


@pytest.mark.parametrize("in_place", [False, True], ids=["rewritten", "in place"])
def test_it_is_downloaded_tried_confirmed_and_kept(tmp_path, new, in_place):
    with updating(tmp_path, sign(new, 1), in_place=in_place) as (centre, board):
        sizes = sizes_of(board)
        wait_until(lambda: told(centre, "running", 1), PATIENCE_S, "the new version to report")
        wait_until(lambda: "version 1 is confirmed" in board.said(), PATIENCE_S, "the confirmation")
        assert centre.hashes[-1] == load_bundle(new).model_hash
        assert not any("encoder.tflite" in path.name for path in (board.folder / "bundle.b").iterdir())
        assert max(want.length for want in centre.rollout.wanted) <= 512
        assert not in_place or sizes_of(board) == sizes
        reports = len(told(centre, "running", 1))
        board.kill()
        wait_until(lambda: len(told(centre, "running", 1)) > reports, PATIENCE_S, "the next start")
        assert not told(centre, "failed", 1)


def test_what_the_centre_does_not_hear_of_is_rolled_back_after_three_starts(tmp_path, new):
    with updating(
        tmp_path, sign(new, 1), hears=lambda report: report.state != "running" or not report.version
    ) as (
        centre,
        board,
    ):
        for count in range(1, 4):
            wait_until(
                lambda n=count: len(told(centre, "running", 1)) >= n, PATIENCE_S, "the new version's report"
            )
            seen = board.starts
            board.kill()
            wait_until(lambda n=seen: board.starts > n, PATIENCE_S, "the next start")
        wait_until(lambda: told(centre, "failed", 1), PATIENCE_S, "the failure")
        assert "started 3 times without an answer" in told(centre, "failed", 1)[0].reason
        running = len(told(centre, "running", 0))
        wait_until(lambda: len(told(centre, "running", 0)) > running, PATIENCE_S, "the version before")
        wait_until(lambda: centre.hashes[-1] != load_bundle(new).model_hash, PATIENCE_S, "its model")


def test_a_bundle_that_was_damaged_since_gives_way_to_the_one_before_and_the_centre_is_told(tmp_path, new):
    with updating(tmp_path, sign(new, 1)) as (centre, board):
        wait_until(lambda: "version 1 is confirmed" in board.said(), PATIENCE_S, "the confirmation")
        path = board.folder / "bundle.b" / "encoder.epicnn"
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        board.kill()
        wait_until(lambda: told(centre, "failed", 1), PATIENCE_S, "the failure")
        assert "it is damaged" in told(centre, "failed", 1)[0].reason
        wait_until(lambda: centre.hashes[-1] != load_bundle(new).model_hash, PATIENCE_S, "the model before")
        # Nothing to go back to any more: the line on the prompt says so, and nothing is written.
        path = board.folder / "bundle" / "encoder.epicnn"
        path.write_bytes(path.read_bytes()[:-1])
        board.kill()
        wait_until(lambda: "epic: bundle/encoder.epicnn" in board.said(), PATIENCE_S, "the line")


def test_killed_in_the_middle_it_goes_on(tmp_path, new):
    with updating(tmp_path, sign(new, 1)) as (centre, board):
        wait_until(lambda: len(centre.rollout.wanted) >= 3, PATIENCE_S, "the third chunk")
        board.kill()
        wait_until(lambda: told(centre, "running", 1), PATIENCE_S, "the new version to report")
        assert not told(centre, "failed", 1)
        wanted = [want.offset for want in centre.rollout.wanted]
        # The answer to the last one before the kill may have been lost.
        assert len(wanted) <= len(set(wanted)) + 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("foreign", "the signature is not of the key that this device trusts"),
        ("tampered", "the SHA-256 of encoder.epicnn is not what was signed"),
        ("plain", "it has no encoder.epicnn, which this board runs; convert the model again"),
    ],
)
def test_what_is_not_signed_damaged_or_not_for_this_firmware_is_refused(tmp_path, new, change, said):
    archive = sign(new, 1, SigningKey(bytes(32)) if change == "foreign" else KEY)
    if change == "tampered":
        place = archive.index((new / "encoder.epicnn").read_bytes()) + 100
        archive = archive[:place] + bytes([archive[place] ^ 1]) + archive[place + 1 :]
    if change == "plain":
        archive = sign(make_release(tmp_path / "plain", "plain", OTHER_ENCODER), 1)
    with updating(tmp_path, archive) as (centre, board):
        wait_until(lambda: told(centre, "failed", 1), PATIENCE_S, "the failure")
        assert said in told(centre, "failed", 1)[0].reason
        assert board.starts == 1
        assert (
            not (board.folder / "slots.0").exists()
            or '"slot": 0' in board.folder.joinpath("slots.0").read_text()
        )
