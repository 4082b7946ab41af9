"""Physics: surveys, velocity families, wave-equation modelling, OpenFWI files and metrics."""

from physics.acquisition import Acquisition

__all__ = ["Acquisition"]
