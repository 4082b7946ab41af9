"""Configurations, devices' sockets and stores with a map for tests of the centre."""

from pathlib import Path

import pytest
import zmq
from fake_decoder import MODEL_HASH, SURVEY, FakeDecoder, latent_record

from central.storage.journal import Journal
from central.storage.map_store import NewMap, Store
from firmware_py.protocol import packet


class Dealer:
    """A device's socket as a test drives it."""

    def __init__(self, endpoint: str, identity: bytes = b"") -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        if identity:
            self._socket.setsockopt(zmq.IDENTITY, identity)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(endpoint)

    def send(self, *records: packet.Record) -> None:
        for record in records:
            self.send_bytes(packet.encode_record(record))

    def send_bytes(self, *parts: bytes) -> None:
        self._socket.send_multipart(parts)

    def answer(self, timeout_s: float = 20.0) -> packet.Record | None:
        """The next answer; None when none comes within ``timeout_s``."""
        if not self._socket.poll(int(timeout_s * 1000)):
            return None
        return packet.decode_record(self._socket.recv())

    def close(self) -> None:
        self._socket.close()
        self._context.term()


@pytest.fixture
def dealers():
    """Opens devices' sockets, ``dealers(endpoint, identity)``; closes them after the test.

    Without an identity a connection gets its name from the centre, as devices' do.
    """
    opened = []

    def open_dealer(endpoint: str, identity: bytes = b"") -> Dealer:
        opened.append(Dealer(endpoint, identity))
        return opened[-1]

    yield open_dealer
    for dealer in opened:
        dealer.close()


@pytest.fixture
def data_dir(tmp_path) -> Path:
    """An empty store."""
    folder = tmp_path / "data"
    Journal(folder).close()
    return folder


@pytest.fixture
def fill(data_dir):
    """Puts the map of five devices' event into the store: ``fill(event, survey)``; returns it."""

    def put(event: int = 7, survey: int = 1, value: int = 3):
        import numpy as np

        latents = np.full((SURVEY.n_devices, FakeDecoder.latent), value, np.int8)
        maps = FakeDecoder().decode(latents, np.ones(SURVEY.n_devices, bool))
        provenance = {
            "devices": [0, 1, 2, 3, 4],
            "model_hash": MODEL_HASH.hex(),
            "sample_time_us": latent_record().sample_time_us,
            "received_bytes": 280,
            "acquisition": SURVEY.to_dict(),
        }
        store = Store(data_dir)
        key = (survey, event, MODEL_HASH)
        store.put([NewMap(key, 5 * event, False, maps[0][0], maps[1][0], provenance)])
        stored = store.get(event, survey)
        store.close()
        return stored

    return put
