"""Decoding in processes of their own: the same maps, and a process that dies loses none."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
from fake_decoder import latent_record
from small_survey import SURVEY
from waiting import wait_until

from central.pipeline.decoding import Decoding
from central.pipeline.workers import GIVEN_EACH, Workers
from central.storage.journal import Journal
from central.storage.journal_cursor import JournalCursor
from central.storage.map_store import Store
from firmware_py.runtime.log import Log
from models.inversion.decoder import LatentFormat, load_decoder, save_decoder
from models.networks.fusion import DecoderConfig, build_decoder

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# Has one batch drawn, says which process drew it, then waits for ever.
PARENT = """
import multiprocessing, pathlib, sys, threading, types
import numpy as np
from central.pipeline.workers import Workers

if __name__ == "__main__":
    workers = Workers(1)
    decoder = types.SimpleNamespace(folder=pathlib.Path(sys.argv[1]))
    for _ in range(2):
        workers.submit(decoder, np.zeros((1, 3, 16), np.int8), np.ones((1, 3), bool), None)
        assert [drawn.error for drawn in workers.finished(all_of_it=True)] == [None]
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        sys.stdin.readline()
    threading.Event().wait()
"""
MODEL_HASH = bytes.fromhex("ab" * 8)
LATENT = 16
EVENTS = 12


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoder")
    keras.utils.set_random_seed(0)
    config = DecoderConfig(3, LATENT, 20, 20, width=16, heads=2, self_layers=1, cross_layers=1)
    build_decoder(config).save(folder / "decoder.keras")
    save_decoder(
        folder / "decoder", folder / "decoder.keras", LatentFormat(MODEL_HASH.hex(), 0.05, 3), SURVEY
    )
    return load_decoder(folder / "decoder")


@pytest.fixture
def journalled(data_dir):
    """Three devices' latents of every event, in the journal."""
    rng = np.random.default_rng(0)
    records = [
        latent_record(
            device,
            event,
            event,
            model_hash=MODEL_HASH,
            payload=rng.integers(-128, 128, LATENT).astype(np.int8).tobytes(),
        )
        for event in range(1, EVENTS + 1)
        for device in range(3)
    ]
    journal = Journal(data_dir)
    new = journal.commit([(record, 1_700_000_000_000_000, 200) for record in records]).new
    journal.close()
    return new


@pytest.fixture
def decoding(data_dir, decoder, tmp_path):
    """Starts the work on a thread with so many workers."""
    cursor = JournalCursor()
    threads = []

    def start(count):
        log = Log(tmp_path / "central.jsonl")
        workers = Workers(count) if count else None
        work = Decoding(data_dir, 0.5, {MODEL_HASH: decoder}, cursor, log, lambda picture: None, workers)
        threads.append(threading.Thread(target=work.run))
        threads[-1].start()
        return threads[-1]

    yield start
    cursor.end()
    for thread in threads:
        thread.join()


def maps(data_dir):
    store = Store(data_dir)
    found = {stored.event: stored.velocity_mps for stored in store.newest()}
    store.close()
    return found


def test_workers_draw_what_the_centre_itself_draws(data_dir, journalled, decoding, decoder):
    decoding(1)
    wait_until(lambda: len(maps(data_dir)) == EVENTS, timeout_s=120.0, what="maps")
    for event, drawn in maps(data_dir).items():
        latents = [np.frombuffer(row.payload, np.int8) for row in journalled if row.event == event]
        alone, _ = decoder.decode(np.stack(latents), np.ones(3, bool))
        np.testing.assert_allclose(drawn, alone[0], atol=0.5)


def test_what_is_given_while_the_rest_is_awaited_is_awaited_too(decoder):
    """As when one event of a batch cannot be drawn, and each is drawn alone: also while the centre ends."""
    workers = Workers(1)
    good = np.zeros((1, 3, LATENT), np.int8)
    everyone = np.ones((1, 3), bool)
    workers.submit(decoder, good, np.zeros((1, 3), bool), "nobody heard")
    came = []
    for drawn in workers.finished(all_of_it=True):
        came.append((drawn.given, drawn.error is None))
        if drawn.error:
            workers.submit(decoder, good, everyone, "again")
    workers.close()
    assert came == [("nobody heard", False), ("again", True)]


def test_no_more_is_given_than_the_processes_can_have_before_them(decoder):
    workers = Workers(1)
    for number in range(8):
        workers.submit(decoder, np.zeros((1, 3, LATENT), np.int8), np.ones((1, 3), bool), number)
        assert sum(not future.done() for future in workers._given) <= GIVEN_EACH
    assert sorted(drawn.given for drawn in workers.finished(all_of_it=True)) == list(range(8))
    workers.close()


def test_a_worker_that_is_killed_costs_no_map(data_dir, journalled, decoding, tmp_path):
    decoding(1)
    (worker,) = wait_until(multiprocessing.active_children, timeout_s=60.0, what="a worker")
    os.kill(worker.pid, signal.SIGKILL)
    wait_until(lambda: len(maps(data_dir)) == EVENTS, timeout_s=120.0, what="maps")
    assert "worker_lost" in (tmp_path / "central.jsonl").read_text()


def test_a_worker_leaves_ctrl_c_to_the_centre_and_ends_when_it_is_killed(decoder, tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(script), str(decoder.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    worker = int(parent.stdout.readline())
    try:
        os.kill(worker, signal.SIGINT)
        parent.stdin.write("again\n")
        parent.stdin.flush()
        assert int(parent.stdout.readline()) == worker
        parent.kill()
        # The worker has the parent's standard output too: it ends with the last that holds it.
        assert parent.communicate(timeout=60.0) == ("", None)
    except BaseException:
        os.kill(worker, signal.SIGKILL)
        raise
    finally:
        parent.kill()
        parent.wait()
