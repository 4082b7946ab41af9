"""The ten 2-D velocity families of OpenFWI as seeded generators.

OpenFWI (Deng et al., NeurIPS 2022) publishes samples, not the programs that drew them. These generators
follow the statistics of genuine maps (``benchmarks/families.py`` compares them). A map is a pure function
of ``(family, seed, index, survey)``, so any number of workers draws the same data set.
"""

from __future__ import annotations

import hashlib

import numpy as np

from physics.acquisition import Acquisition
from physics.errors import PhysicsError
from physics.families.family import Family, Frame
from physics.families.registry import REGISTRY

__all__ = ["FAMILIES", "REGISTRY", "Family", "UnknownFamilyError", "check_family", "generate_map"]

FAMILIES: tuple[str, ...] = tuple(REGISTRY)


class UnknownFamilyError(PhysicsError, ValueError):
    """A family name that OpenFWI does not have."""


def check_family(family: str) -> str:
    """Return the canonical name (lower case, underscores) or raise ``UnknownFamilyError``."""
    name = family.lower().replace("-", "_")
    if name not in REGISTRY:
        raise UnknownFamilyError(f"family: expected one of {', '.join(FAMILIES)}; got {family!r}")
    return name


def generate_map(family: str, seed: int, index: int, acquisition: Acquisition) -> np.ndarray:
    """Draw one velocity map.

    Args:
        family: Name of the family, as ``check_family`` takes it.
        seed: Seed of the sequence.
        index: Place in the sequence, from 0.
        acquisition: Survey whose grid and velocity range the map gets.

    Returns:
        float32 ``(1, n_depth, n_width)`` in m/s within the survey's velocity bounds; the same arguments
        give the same map in every process.

    Raises:
        UnknownFamilyError: The benchmark has no such family.
    """
    name = check_family(family)
    tag = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    rng = np.random.default_rng(np.random.SeedSequence([seed, tag, index]))
    low, high = acquisition.velocity_min_mps, acquisition.velocity_max_mps
    share = REGISTRY[name].draw(rng, Frame.of_grid(acquisition.n_depth, acquisition.n_width))
    return np.clip(low + (high - low) * share, low, high).astype(np.float32)[None]
