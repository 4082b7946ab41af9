"""A small bundle and gathers for it."""

import numpy as np
import pytest
from tiny import ENCODER, SHAPE, bundle_fields

from firmware_py.bundle import create_bundle


@pytest.fixture
def bundle(tmp_path):
    return create_bundle(tmp_path / "bundle", ENCODER, bundle_fields())


@pytest.fixture
def gathers():
    return np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(np.float32)
