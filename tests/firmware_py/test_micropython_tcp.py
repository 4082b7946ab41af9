"""A board with stock MicroPython, whole: recordings, viper, spool, TCP, gateway, journal."""

import contextlib
import json
import shutil
import time

import micropython_unix
import pytest
from gateway_centre import GatewayCentre
from stock_board import DEVICE, START, STUBS, StockBoard, arrived, kill_and_restart
from waiting import wait_until

from central.ingest.receiver import Expected
from firmware_py.inference.bundle import load_bundle
from firmware_py.micropython.spool import Spool
from firmware_py.micropython.store import FileStore
from firmware_py.protocol.rate import Coding
from testbed.run import DEFAULT_MODEL

pytestmark = pytest.mark.emulated
ZOO = DEFAULT_MODEL.parent


@pytest.fixture
def centre_for(tmp_path):
    """Makes a centre, with its gateway on TCP, for a bundle's latents."""
    with contextlib.ExitStack() as stack:

        def make(bundle):
            models = {bundle.model_hash: Expected(5, Coding(bundle.output.shape[1]))}
            return stack.enter_context(GatewayCentre(tmp_path / "centre", models=models))

        yield make


@pytest.mark.slow
def test_killed_again_and_again_it_loses_nothing(tmp_path, centre_for):
    bundle = load_bundle(DEFAULT_MODEL / "bundle")
    centre = centre_for(bundle)
    with contextlib.closing(
        StockBoard(tmp_path / "board", bundle, centre.endpoint, centre.secret(DEVICE), 20, 400)
    ) as board:
        board.start()
        # test_micropython_spool.py cuts every write; benchmarks/robustness/board_kills.py kills more often.
        kill_and_restart(board, 10, 0.6)
        wait_until(lambda: len(arrived(centre)) == 20, 120.0, "every record")
        assert arrived(centre) == dict(enumerate(board.latents, start=1))
        assert board.running()
        assert "watchdog" not in board.said()


@pytest.mark.slow
def test_killed_with_its_spool_on_a_raw_partition_it_loses_nothing(tmp_path, centre_for):
    bundle = load_bundle(ZOO / "epic-micro-64" / "bundle")
    centre = centre_for(bundle)
    with contextlib.closing(
        StockBoard(tmp_path / "board", bundle, centre.endpoint, centre.secret(DEVICE), 12, 400)
    ) as board:
        shutil.copy(STUBS.parent / "esp32.py", board.folder)
        config = json.loads((board.folder / "device.json").read_text())
        config["spool"] = {"kind": "flash", "path": "spool"}
        (board.folder / "device.json").write_text(json.dumps(config))
        board.start()
        kill_and_restart(board, 15, 0.8)
        wait_until(lambda: len(arrived(centre)) == 12, 120.0, "every record")
        assert arrived(centre) == dict(enumerate(board.latents, start=1))
        assert not list(board.folder.glob("spool*")), "nothing in the file system"
        flash = (board.folder / "partition-spool").read_bytes()
        # Every record, and a mark of each start that lived long enough.
        assert len(flash) == 1 << 16 and flash.count(b"EP") > 12


@pytest.mark.slow
def test_over_wifi_it_survives_the_access_point_s_loss(tmp_path, centre_for):
    bundle = load_bundle(ZOO / "epic-micro-64" / "bundle")
    centre = centre_for(bundle)
    wifi = {"ssid": "survey", "password": "a secret of the network"}
    with contextlib.closing(
        StockBoard(tmp_path / "board", bundle, centre.endpoint, centre.secret(DEVICE), 8, 300, **wifi)
    ) as board:
        access_point = board.folder / "access-point"
        access_point.write_text(wifi["password"])
        board.start()
        wait_until(lambda: arrived(centre), 60.0, "the first record")
        access_point.unlink()
        # What is recorded meanwhile stays in the spool.
        time.sleep(1.0)
        assert board.running()
        access_point.write_text(wifi["password"])
        wait_until(lambda: len(arrived(centre)) == 8, 90.0, "every record")
        assert arrived(centre) == dict(enumerate(board.latents, start=1))
        assert wifi["password"] not in board.said()


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ({"endpoint": "192.0.2.1"}, "link endpoint: expected HOST:PORT of a gateway, got '192.0.2.1'"),
        ({"password": 12345}, "link password: expected str, got another type"),
    ],
)
def test_a_wrong_link_is_one_line_and_shows_no_password(tmp_path, link, said):
    bundle = load_bundle(ZOO / "epic-micro-64" / "bundle")
    board = StockBoard(tmp_path / "board", bundle, "192.0.2.1:5558", bytes(32), 1, 0)
    board.close()
    config = json.loads((board.folder / "device.json").read_text())
    config["link"] |= link
    (board.folder / "device.json").write_text(json.dumps(config))
    path = f"{board.folder}:{micropython_unix.ROOT}:.frozen"
    line = micropython_unix.run(board.folder, START, path=path).strip()
    assert line.startswith("epic: ") and said in line and "12345" not in line


def failed_starts(path):
    """What the next start would find in a spool's file."""
    return Spool(FileStore(str(path), 256), (DEVICE, 1)).failed_starts


BROKEN = "def open_source(shots, samples, receivers):\n    raise OSError('no answer')\n"
AT_ONCE = "from firmware_py.micropython import start\nstart.BEFORE_RESET_MS = 0\nstart.start()\n"


@pytest.mark.slow
def test_after_starts_that_failed_it_sends_what_it_has_and_records_nothing(tmp_path, centre_for):
    bundle = load_bundle(ZOO / "epic-micro-64" / "bundle")
    centre = centre_for(bundle)
    with contextlib.closing(
        StockBoard(tmp_path / "board", bundle, "127.0.0.1:1", centre.secret(DEVICE), 2, 0)
    ) as board:
        board.start()
        spool = board.folder / "spool.bin"
        wait_until(
            lambda: spool.exists() and any(spool.read_bytes()[1024:1536]), 60.0, "two records in the spool"
        )
        board.kill()
        (board.folder / "digitiser.py").write_text(BROKEN)
        config = json.loads((board.folder / "device.json").read_text())
        config["source"] = {"kind": "module", "name": "digitiser"}
        config["link"]["endpoint"] = centre.endpoint
        (board.folder / "device.json").write_text(json.dumps(config))
        board.script = AT_ONCE
        failed = 0
        board.start()
        while "5 starts have failed; nothing is recorded" not in board.said():
            if board.ended_within(0.1):
                failed += 1
                assert failed < 10
                board.start()
        assert failed == 4, "the killed start was the first that nothing came of"
        wait_until(lambda: len(arrived(centre)) == 2, 60.0, "what was in the spool")
        assert arrived(centre) == dict(enumerate(board.latents, start=1))
        wait_until(lambda: failed_starts(spool) == 0, 10.0, "the answer to count as a good start")


def test_power_cuts_are_no_failed_starts(tmp_path):
    path = f"{tmp_path}:{micropython_unix.ROOT}:.frozen"
    for stub in STUBS.glob("*.py"):
        shutil.copy(stub, tmp_path)
    count = (
        "from firmware_py.micropython.safe_mode import Starts\n"
        "from firmware_py.micropython.spool import Spool\n"
        "from firmware_py.micropython.store import FileStore\n"
        "for _ in range(9):\n"
        "    spool = Spool(FileStore('spool.bin', 16), (0, 1))\n"
        "    starts = Starts(spool)\n"
        "    starts.begin(spool.last_boot + 1)\n"
        "print(starts.safe)"
    )
    (tmp_path / "power-on").touch()
    assert micropython_unix.run(tmp_path, count, path=path).strip() == "False"
    (tmp_path / "power-on").unlink()
    assert micropython_unix.run(tmp_path, count, path=path).strip() == "True"
