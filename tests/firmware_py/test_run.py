"""The loop around the node: which bundle a device runs when the one on trial cannot start."""

import json

import numpy as np
import pytest
from fake_centre import FakeCentre
from nacl.signing import SigningKey
from releases import make_release, write_public_key
from tiny import ENCODER, SHAPE

from firmware_py.inference.bundle import BundleError, load_bundle
from firmware_py.runtime.check import check
from firmware_py.runtime.config import load_config
from firmware_py.runtime.run import run_device
from firmware_py.updates.slots import Slots
from firmware_py.updates.updater import Updater


@pytest.fixture
def configure(tmp_path):
    """A replay of one gather that ends by itself; returns its configuration."""
    make_release(tmp_path / "old", "old", ENCODER)
    write_public_key(tmp_path / "signing.public", SigningKey.generate())
    np.save(tmp_path / "gathers.npy", np.ones((1, *SHAPE), np.float32))

    def write(endpoint):
        (tmp_path / "node.toml").write_text(
            f'[node]\ndevice = 1\nbundle = "old"\n[link]\nendpoint = "{endpoint}"\ninsecure = true\n'
            '[source]\nkind = "files"\npaths = ["gathers.npy"]\n[update]\nkey = "signing.public"\n'
            '[run]\nexit_when_drained = true\nlog = "node.jsonl"\n'
        )
        return load_config(tmp_path / "node.toml")

    return write


def put_on_trial(tmp_path, name, **options):
    slots = Slots(tmp_path / "state" / "slots", tmp_path / "old")
    slots.switch(make_release(slots.incoming / "bundle", name, **options), 7)
    slots.close()


def test_a_bundle_on_trial_that_cannot_start_is_gone_back_from(tmp_path, configure):
    put_on_trial(tmp_path, "bad", encoder=b"no model")
    with FakeCentre() as centre:
        node, statistics = run_device(configure(centre.endpoint), lambda node: None)
    assert node.bundle.name == "old"
    assert statistics["acknowledged"] == 1
    state = json.loads((tmp_path / "state" / "slots" / "state.json").read_text())
    assert state["failure"][0] == 7
    assert "cannot load this model" in state["failure"][1]


def test_a_bundle_on_trial_for_another_survey_is_gone_back_from(tmp_path, configure):
    put_on_trial(tmp_path, "other", acquisition={"source_cells": []})
    with FakeCentre() as centre:
        node, _ = run_device(configure(centre.endpoint), lambda node: None)
    assert node.bundle.name == "old"


def test_an_update_for_another_survey_fails_before_it_is_in_use(tmp_path, configure):
    """Its encoder runs, but the device would reject every recording."""
    survey = load_bundle(tmp_path / "old").manifest["acquisition"]
    other = load_bundle(
        make_release(tmp_path / "other", "other", ENCODER, acquisition={**survey, "dt_s": 0.004})
    )

    refused = []

    def try_update(node):
        (updater,) = (handler for handler in node.handlers if isinstance(handler, Updater))
        try:
            updater._test(other)
        except BundleError as error:
            refused.append(str(error))

    with FakeCentre() as centre:
        run_device(configure(centre.endpoint), try_update)
    assert refused and "another survey: dt_s differ" in refused[0]


def test_a_bundle_that_a_person_installed_and_that_cannot_start_is_an_error(tmp_path, configure):
    config = configure("tcp://127.0.0.1:9")
    make_release(tmp_path / "old", "old", ENCODER, acquisition={})
    with pytest.raises(BundleError, match="acquisition is not whole"):
        run_device(config, lambda node: None)


def test_check_tries_the_bundle_in_use_and_changes_nothing(tmp_path, configure):
    put_on_trial(tmp_path, "new")
    before = (tmp_path / "state" / "slots" / "state.json").read_bytes()
    found = check(configure("tcp://127.0.0.1:9"))
    assert (found["bundle"], found["model_hash"]) == (
        "new",
        load_bundle(tmp_path / "state" / "slots" / "b").model_hash.hex(),
    )
    assert (tmp_path / "state" / "slots" / "state.json").read_bytes() == before
