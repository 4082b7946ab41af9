"""A small bundle, gathers for it, and a device that runs on both."""

import json
import threading

import numpy as np
import pytest
from tiny import ENCODER, SHAPE, bundle_fields

from firmware_py.inference.bundle import create_bundle
from firmware_py.runtime.config import LinkSection, NodeConfig, NodeSection, RunSection, SourceSection
from firmware_py.runtime.node import Node

TIMEOUT_S = 20.0


@pytest.fixture
def bundle(tmp_path):
    return create_bundle(tmp_path / "bundle", ENCODER, bundle_fields())


@pytest.fixture
def gathers():
    return np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(np.float32)


@pytest.fixture
def config(tmp_path, bundle, gathers):
    """Makes a configuration of a replay of four gathers."""
    np.save(tmp_path / "gathers.npy", gathers)

    def make(endpoint, window=16, drain=True, source=None, **node):
        return NodeConfig(
            NodeSection(**{"device": 1, "bundle": bundle.folder, "state_dir": tmp_path / "state", **node}),
            LinkSection(endpoint, resend_s=0.1, window=window),
            source or SourceSection("files", (tmp_path / "gathers.npy",)),
            RunSection(drain, tmp_path / "node.jsonl"),
        )

    return make


class Running:
    """A node on a thread of its own; leaving the context stops it and fails if it failed."""

    def __init__(self, config):
        self.node = None
        self.statistics = None
        self._config = config
        self._failure = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        try:
            # SQLite and ZeroMQ both want to be used on the thread that made them.
            self.node = Node(self._config)
            self._ready.set()
            self.statistics = self.node.run()
        except Exception as error:
            self._failure = error
            self._ready.set()

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(TIMEOUT_S)
        return self

    def __exit__(self, kind, *_):
        if self.node:
            self.node.stop()
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive(), "the node did not stop"
        if self._failure and kind is None:
            raise self._failure

    def finished(self):
        return not self._thread.is_alive()


@pytest.fixture
def start():
    """``with start(config) as running`` runs a node."""
    return Running


@pytest.fixture
def entries(tmp_path):
    """The lines of one kind in the device's log."""

    def read(what):
        rows = [json.loads(line) for line in (tmp_path / "node.jsonl").read_text().splitlines()]
        return [row for row in rows if row["message"] == what]

    return read
