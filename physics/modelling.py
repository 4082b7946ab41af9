"""Forward modelling: from velocity maps to receiver recordings, with a choice of engines."""

from __future__ import annotations

from importlib import import_module

import numpy as np

from physics.acquisition import Acquisition
from physics.errors import ModellingError

ENGINES = ("openfwi", "cuda")
# Packages of each engine; the cuda engine reports its own missing parts.
_PACKAGES = {"openfwi": ("numba",), "cuda": ()}
# Stability limit (Courant number) of second order in time and fourth in space in 2-D: sqrt(3 / 8).
_STABLE_CELLS_A_STEP = (3.0 / 8.0) ** 0.5


def fastest_stable_mps(acquisition: Acquisition) -> float:
    """Return the velocity in m/s above which the benchmark's scheme is unstable for this time step and cell size."""
    return _STABLE_CELLS_A_STEP * acquisition.dx_m / acquisition.dt_s


def model_gathers(velocity_mps: np.ndarray, acquisition: Acquisition, engine: str = "openfwi") -> np.ndarray:
    """Model gathers of constant-density acoustic maps.

    Args:
        velocity_mps: ``(n, 1, nz, nx)`` in m/s.
        engine: "openfwi" is the benchmark's finite-difference scheme, "cuda" the same on an NVIDIA GPU; it needs CuPy.

    Returns:
        Gathers, float32 ``(n, S, T, R)``.

    Raises:
        ModellingError: The maps cannot be modelled, or the engine is not available.
    """
    velocity_mps = np.asarray(velocity_mps)
    if velocity_mps.ndim != 4 or velocity_mps.shape[1:] != acquisition.map_shape:
        raise ModellingError(
            f"modelling: expected maps (n, {', '.join(map(str, acquisition.map_shape))}), "
            f"got {velocity_mps.shape}"
        )
    if not len(velocity_mps) or not np.isfinite(velocity_mps).all() or velocity_mps.min() <= 0:
        raise ModellingError("modelling: expected at least one map of finite, positive velocities in m/s")
    fastest_mps = fastest_stable_mps(acquisition)
    if velocity_mps.max() >= fastest_mps:
        raise ModellingError(
            f"modelling: expected at most {fastest_mps:.0f} m/s for steps of {acquisition.dt_s * 1e3:g} ms on "
            f"{acquisition.dx_m:g} m, got {velocity_mps.max():.0f}; take a shorter step or larger cells"
        )
    require_engine(engine)
    return import_module(f"physics.engines.{engine}").model(velocity_mps[:, 0], acquisition)


def check_engine(engine: str) -> str:
    """Return the engine's name, or raise ``ModellingError`` for an unknown one."""
    if engine not in ENGINES:
        raise ModellingError(f"modelling: expected engine {', '.join(ENGINES)}; got {engine!r}")
    return engine


def require_engine(engine: str) -> None:
    """Raise ``ModellingError`` if the engine is unknown or its packages or GPU are missing."""
    check_engine(engine)
    try:
        for package in _PACKAGES[engine]:
            import_module(package)
    except ImportError as error:
        raise ModellingError(
            f"modelling: engine {engine} needs {error.name}; pip install -e '.[central]'"
        ) from None
    if engine == "cuda":
        import_module("physics.engines.cuda").load_cupy()
