"""The self-test of a bundle: golden vectors within one step, of one arithmetic or another."""

import numpy as np
import pytest
from tiny import ENCODER, bundle_fields

from firmware_py.inference.bundle import BundleError, create_bundle
from firmware_py.inference.encoder import Encoder
from firmware_py.inference.self_test import VECTORS, SelfTestError, encode_vectors, self_test


@pytest.fixture
def vectors(bundle):
    """Inputs and what this machine's runtime makes of them: ``(3, 10, 3, 2)``, ``(3, 8)`` int8."""
    inputs = np.random.default_rng(1).integers(-128, 128, (3, *bundle.input.shape[1:]), np.int8)
    encoder = Encoder(bundle)
    return inputs, np.stack([encoder.encode(codes).copy() for codes in inputs])


@pytest.fixture
def with_vectors(tmp_path):
    def make(inputs, latents):
        return create_bundle(
            tmp_path / "tested", ENCODER, bundle_fields(), {VECTORS: encode_vectors(inputs, latents)}
        )

    return make


def nudged(latents, steps):
    """Latents of which one value is ``steps`` away."""
    other = latents.copy()
    other[1, 4] += steps if other[1, 4] < 0 else -steps
    return other


def test_a_bundle_without_vectors_encodes_silence(bundle):
    self_test(bundle)


@pytest.mark.parametrize("steps", [0, 1])
def test_latents_within_one_step_pass(vectors, with_vectors, steps):
    inputs, latents = vectors
    self_test(with_vectors(inputs, nudged(latents, steps)[None]))


def test_latents_two_steps_away_fail_and_say_so(vectors, with_vectors):
    inputs, latents = vectors
    with pytest.raises(SelfTestError, match="come out 2 int8 steps from where .* expected at most 1"):
        self_test(with_vectors(inputs, nudged(latents, 2)[None]))


def test_agreeing_with_one_of_two_arithmetics_is_enough(vectors, with_vectors):
    inputs, latents = vectors
    self_test(with_vectors(inputs, np.stack([nudged(latents, 5), latents])))
    # Half from one and half from the other is neither.
    mixed = np.stack([nudged(latents, 5), nudged(latents[::-1], 5)[::-1]])
    with pytest.raises(SelfTestError, match="int8 steps"):
        self_test(with_vectors(inputs, mixed))


def test_vectors_of_another_shape_or_none_at_all(vectors, with_vectors, tmp_path):
    inputs, latents = vectors
    with pytest.raises(SelfTestError, match="expected int8 inputs"):
        self_test(with_vectors(inputs[:, 1:], latents[None]))
    with pytest.raises(SelfTestError, match="expected int8 inputs"):
        self_test(with_vectors(inputs, latents[None, :2]))
    garbled = create_bundle(tmp_path / "garbled", ENCODER, bundle_fields(), {VECTORS: b"PK no archive"})
    with pytest.raises(SelfTestError, match="no golden vectors"):
        self_test(garbled)


def test_a_model_that_is_not_what_the_manifest_says(tmp_path):
    fields = bundle_fields()
    fields["output"]["shape"] = [1, 9]
    with pytest.raises(SelfTestError, match="the manifest says int8"):
        self_test(create_bundle(tmp_path / "other", ENCODER, fields))


def test_a_file_that_changed_on_the_disk_since(bundle):
    bundle.encoder_path.write_bytes(bundle.encoder_path.read_bytes()[:-1])
    with pytest.raises(BundleError, match="SHA-256"):
        self_test(bundle)


def test_the_same_vectors_give_the_same_file(vectors):
    inputs, latents = vectors
    assert encode_vectors(inputs, latents[None]) == encode_vectors(inputs.copy(), latents[None].copy())
