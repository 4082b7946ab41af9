"""The ten 2-D velocity families of OpenFWI as seeded generators.

OpenFWI (Deng et al., NeurIPS 2022) publishes samples, not the programs that drew them; these
generators follow its description and the statistics of real samples (DESIGN section 3): layers of
uniform velocity between 1500 and 4500 m/s, flat or curved by 5-10 rows, cut by faults, and random
fields on a depth trend (Style). A survey of another range of velocities has the same structures stretched
to it. A map is a pure function of ``(family, seed, index, survey)``, so any number of workers draws the
same data set.
"""

from __future__ import annotations

import hashlib

import numpy as np

from physics.acquisition import Acquisition

FAMILIES: tuple[str, ...] = (
    "flatvel_a",
    "flatvel_b",
    "curvevel_a",
    "curvevel_b",
    "flatfault_a",
    "flatfault_b",
    "curvefault_a",
    "curvefault_b",
    "style_a",
    "style_b",
)

# Least thickness of a layer and least contrast between neighbours: thinner or weaker ones
# cannot be told apart at 15 Hz (a quarter of the shortest wavelength is 25 m).
_MIN_LAYER_CELLS = 5
_MIN_CONTRAST_MPS = 100.0
# In a narrow range neighbours differ by at least this share of what even layers would: drawn at random,
# one stack in a hundred does, so that one is found at once.
_MIN_CONTRAST_SHARE = 0.5
# The range in which Style's numbers are given.
_BENCHMARK_MIN_MPS, _BENCHMARK_RANGE_MPS = 1500.0, 3000.0
# Faulted layers reach this far above and below the map, so that a fault lifts others into view.
_FAULT_MARGIN_CELLS = 8


class UnknownFamilyError(ValueError):
    """A family name that OpenFWI does not have."""


def check_family(family: str) -> str:
    """Return the canonical name (lower case, underscores) or raise ``UnknownFamilyError``."""
    name = family.lower().replace("-", "_")
    if name not in FAMILIES:
        raise UnknownFamilyError(f"family: expected one of {', '.join(FAMILIES)}; got {family!r}")
    return name


def generate_map(family: str, seed: int, index: int, acquisition: Acquisition) -> np.ndarray:
    """Draw one velocity map.

    Returns float32 ``(1, n_depth, n_width)`` in m/s within the survey's velocity bounds. The same
    arguments give the same map on every machine and in every process.

    Raises ``UnknownFamilyError``.
    """
    name = check_family(family)
    tag = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    rng = np.random.default_rng(np.random.SeedSequence([seed, tag, index]))
    kind, variant = name.rsplit("_", 1)
    low, high = acquisition.velocity_min_mps, acquisition.velocity_max_mps
    draw = _style if kind == "style" else _layered
    field = draw(rng, acquisition, kind, variant)
    return np.clip(field, low, high).astype(np.float32)[None]


def _layered(rng: np.random.Generator, acquisition: Acquisition, kind: str, variant: str) -> np.ndarray:
    """Layers, curved or flat, possibly cut by faults: ``(n_depth, n_width)`` m/s."""
    nz, nx = acquisition.n_depth, acquisition.n_width
    faulted = kind.endswith("fault")
    fewest, most = 2, 6
    if faulted:
        fewest, most = (2, 4) if variant == "a" else (6, 8)
    n_layers = int(rng.integers(fewest, most + 1))
    margin = _FAULT_MARGIN_CELLS if faulted else 0
    tops = _layer_tops(rng, n_layers, -margin, nz + margin)
    velocities = _layer_velocities(rng, n_layers, acquisition, increasing=variant == "a")

    z, x = np.meshgrid(np.arange(nz, dtype=np.float64), np.arange(nx, dtype=np.float64), indexing="ij")
    shift = np.zeros((nz, nx))
    if faulted:
        n_faults = 1 if variant == "a" else int(rng.integers(2, 4))
        shift = _fault_shift(rng, x, z, n_faults, nz, nx)
    depth = z - shift
    if kind.startswith("curve"):
        depth = depth - _curve(rng, x, nx)
    # searchsorted finds the last layer whose top is at or above this depth.
    layer = np.clip(np.searchsorted(tops, depth, side="right") - 1, 0, n_layers - 1)
    return velocities[layer]


def _layer_tops(rng: np.random.Generator, n_layers: int, first: float, last: float) -> np.ndarray:
    """Depths (cells) where layers begin, at least ``_MIN_LAYER_CELLS`` apart."""
    free = (last - first) - n_layers * _MIN_LAYER_CELLS
    share = rng.dirichlet(np.full(n_layers, 2.0)) * max(free, 0.0)
    thickness = share + _MIN_LAYER_CELLS
    return first + np.concatenate([[0.0], np.cumsum(thickness)[:-1]])


def _layer_velocities(
    rng: np.random.Generator, n_layers: int, acquisition: Acquisition, increasing: bool
) -> np.ndarray:
    low, high = acquisition.velocity_min_mps, acquisition.velocity_max_mps
    contrast = min(_MIN_CONTRAST_MPS, _MIN_CONTRAST_SHARE * (high - low) / n_layers)
    while True:
        velocities = rng.uniform(low, high, n_layers)
        if increasing:
            velocities = np.sort(velocities)
        if np.all(np.abs(np.diff(velocities)) >= contrast):
            return velocities


def _curve(rng: np.random.Generator, x: np.ndarray, nx: int) -> np.ndarray:
    """A gentle fold: 5-10 rows from crest to trough within the map."""
    wavelength = rng.uniform(0.6, 2.0) * nx
    line = np.sin(2 * np.pi * x[0] / wavelength + rng.uniform(0, 2 * np.pi))
    line += 0.3 * rng.uniform(0, 1) * np.sin(4 * np.pi * x[0] / wavelength + rng.uniform(0, 2 * np.pi))
    span = line.max() - line.min()
    line = (line - line.mean()) / span * rng.uniform(5.0, 10.0)
    return np.broadcast_to(line, x.shape)


def _fault_shift(
    rng: np.random.Generator, x: np.ndarray, z: np.ndarray, n_faults: int, nz: int, nx: int
) -> np.ndarray:
    """Vertical displacement (cells) of every cell by dipping faults that cut the map into blocks."""
    shift = np.zeros(x.shape)
    places = (np.arange(n_faults) + rng.uniform(0.25, 0.75, n_faults)) / n_faults
    for place in places:
        dip = np.deg2rad(rng.uniform(50.0, 130.0))
        across = (x - place * nx) - (z - nz / 2) / np.tan(dip)
        throw = rng.uniform(6.0, 18.0) * rng.choice([-1.0, 1.0])
        shift += np.where(across > 0, throw, 0.0)
    return shift - np.median(shift)


def _style(rng: np.random.Generator, acquisition: Acquisition, kind: str, variant: str) -> np.ndarray:
    """A random field on a depth trend: ``(n_depth, n_width)`` m/s.

    Drawn in the benchmark's range and stretched to the survey's; at the benchmark's that changes no bit.
    """
    nz, nx = acquisition.n_depth, acquisition.n_width
    correlation_cells, sigma_mps, noise_mps = (3.5, 183.0, 0.0) if variant == "a" else (2.0, 158.0, 58.0)
    top, bottom = rng.uniform(1700.0, 2700.0), rng.uniform(2900.0, 4200.0)
    fraction = np.linspace(0.0, 1.0, nz) ** rng.uniform(0.6, 1.6)
    trend = top + (bottom - top) * fraction
    bend = 150.0 * rng.normal() * np.sin(np.pi * np.linspace(0, 1, nz) * rng.uniform(1.0, 3.0))
    field = _smooth_noise(rng, nz, nx, correlation_cells)
    # Natural images have patches with edges: a soft limiter turns blobs into patches.
    field = np.tanh(1.5 * field)
    field = (field - field.mean()) / field.std() * sigma_mps
    field = (trend + bend)[:, None] + field + noise_mps * rng.normal(size=(nz, nx))
    low, high = acquisition.velocity_min_mps, acquisition.velocity_max_mps
    return low + (field - _BENCHMARK_MIN_MPS) * ((high - low) / _BENCHMARK_RANGE_MPS)


def _smooth_noise(rng: np.random.Generator, nz: int, nx: int, correlation_cells: float) -> np.ndarray:
    """Gaussian random field whose correlation falls to 1/e at ``correlation_cells``, unit variance."""
    pad = 16
    shape = (nz + pad, nx + pad)
    noise = rng.normal(size=shape)
    kz = np.fft.fftfreq(shape[0])[:, None]
    kx = np.fft.rfftfreq(shape[1])[None, :]
    # A Gaussian filter of width s correlates as exp(-r^2 / 4 s^2): 1/e at r = 2 s.
    width = correlation_cells / 2
    response = np.exp(-2 * (np.pi * width) ** 2 * (kz**2 + kx**2))
    field = np.fft.irfft2(np.fft.rfft2(noise) * response, s=shape)[:nz, :nx]
    return (field - field.mean()) / field.std()
