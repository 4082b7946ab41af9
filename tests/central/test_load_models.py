"""The models of central.toml: a bundle and a decoder that belong together, each once."""

import sys
import types
from dataclasses import replace

import numpy as np
import pytest
from fake_decoder import FakeDecoder
from tiny import ENCODER, bundle_fields

from central.config import CentralConfig
from central.pipeline.decoders import load_models
from firmware_py.inference.bundle import BundleError, create_bundle
from firmware_py.protocol.rate import Coding, Rate


class Loaded(FakeDecoder):
    """What ``models.inversion.decoder.load_decoder`` gives; remembers what it decoded."""

    coding = Coding(FakeDecoder.latent)

    def __init__(self, model_hash, coding):
        self.model_hash = model_hash
        self.coding = coding
        self.decoded = []

    def decode(self, latents_int8, present):
        self.decoded.append((latents_int8.shape, np.asarray(present).tolist()))
        return super().decode(latents_int8, present)


@pytest.fixture
def bundle(tmp_path):
    fields = {**bundle_fields(), "decoder_sha256": FakeDecoder.sha256}
    return create_bundle(tmp_path / "bundle", ENCODER, fields)


@pytest.fixture
def load(bundle, monkeypatch):
    """Loads ``count`` [[model]] entries of the bundle with a decoder for ``model_hash``; no TensorFlow."""

    def run(model_hash, count=1, coding=bundle.coding):
        module = types.ModuleType("models.inversion.decoder")
        module.load_decoder = lambda folder: Loaded(model_hash, coding)
        monkeypatch.setitem(sys.modules, "models.inversion.decoder", module)
        model = {"bundle": bundle.folder, "decoder": "decoder"}
        central = {"listen": "tcp://127.0.0.1:*", "data_dir": "data"}
        return load_models(CentralConfig.model_validate({"central": central, "model": [model] * count}))

    return run


def test_a_decoder_is_found_by_its_bundles_hash_and_has_decoded_once(load, bundle):
    decoders = load(bundle.model_hash.hex())
    assert list(decoders) == [bundle.model_hash]
    # The first decode compiles; no event must wait for that.
    assert decoders[bundle.model_hash].decoded == [((5, FakeDecoder.latent), [True] * 5)]


def test_a_decoder_that_reads_other_prefixes_than_the_bundle_sends_is_refused(load, bundle):
    other = replace(bundle.coding, prefixes=(Rate(2, 8),))
    with pytest.raises(BundleError, match="give a bundle and a decoder from one conversion"):
        load(bundle.model_hash.hex(), coding=other)


def test_a_decoder_of_another_encoder_is_refused(load):
    with pytest.raises(BundleError, match="give a bundle and a decoder from one conversion"):
        load("00" * 8)


def test_other_weights_than_the_bundle_names_are_refused(load, bundle, monkeypatch):
    monkeypatch.setattr(FakeDecoder, "sha256", "cd" * 32)
    with pytest.raises(BundleError, match="cdcdcdcdcdcdcdcd… .*does not belong to"):
        load(bundle.model_hash.hex())


def test_a_model_given_twice_is_refused(load, bundle):
    with pytest.raises(BundleError, match="has a \\[\\[model\\]\\] already"):
        load(bundle.model_hash.hex(), count=2)
