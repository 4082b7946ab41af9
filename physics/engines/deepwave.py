"""Forward modelling with Deepwave (Richardson), matching OpenFWI's scheme except for the absorbing boundary."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from physics.acquisition import Acquisition
from physics.wavelet import ricker

if TYPE_CHECKING:
    import torch

_PML_CELLS = 10
_COURANT_NUMBER = 0.7
# Every fourth step suffices for a gradient and stores a quarter of the fields.
_GRADIENT_SAMPLING = 4


def model(velocity_mps: np.ndarray, acquisition: Acquisition) -> np.ndarray:
    """Model gathers ``(n, S, T, R)`` float32 of maps ``(n, nz, nx)`` in m/s on one thread."""
    import torch

    with torch.no_grad():
        gathers = [_record(torch.from_numpy(_plain(one)), acquisition).numpy() for one in velocity_mps]
    return np.stack([_as_gather(gather, acquisition) for gather in gathers])


def pull_back(
    velocity_mps: np.ndarray, acquisition: Acquisition
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Return the gather ``(S, T, R)`` of a map ``(nz, nx)`` in m/s, and its adjoint.

    The adjoint takes a derivative with respect to the gather, ``(S, T, R)``, and returns the derivative with respect to
    the map, ``(nz, nx)`` per m/s. It can be called once.
    """
    import torch

    velocity = torch.from_numpy(_plain(velocity_mps)).requires_grad_()
    gather = _record(velocity, acquisition, _GRADIENT_SAMPLING)

    def adjoint(by_gather: np.ndarray) -> np.ndarray:
        late = np.zeros(gather.shape, np.float32)
        late[:, :, 1 : acquisition.n_time + 1] = by_gather.transpose(0, 2, 1)
        (by_velocity,) = torch.autograd.grad(gather, velocity, torch.from_numpy(late))
        return by_velocity.numpy()

    return _as_gather(gather.detach().numpy(), acquisition), adjoint


def _plain(velocity_mps: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(velocity_mps, np.float32)


def _as_gather(recorded: np.ndarray, a: Acquisition) -> np.ndarray:
    """Convert the output of ``_record`` to ``(S, T, R)``."""
    return np.ascontiguousarray(recorded[:, :, 1 : a.n_time + 1].transpose(0, 2, 1), np.float32)


def _record(velocity: torch.Tensor, a: Acquisition, gradient_sampling: int = 1) -> torch.Tensor:
    """Run Deepwave on a map ``(nz, nx)``: ``(S, R, T + 1 or a few more)``."""
    import deepwave
    import torch

    torch.set_num_threads(1)
    # Deepwave's sample t + 1 is OpenFWI's sample t: record one sample more and drop the first.
    n_steps = -(-(a.n_time + 1) // gradient_sampling) * gradient_sampling
    wavelet = np.zeros(n_steps, np.float32)
    wavelet[: a.n_time] = ricker(a)
    receivers = torch.tensor([[a.receiver_row, cell] for cell in a.receiver_cells])
    *_, recorded = deepwave.scalar(
        velocity,
        a.dx_m,
        a.dt_s,
        source_amplitudes=torch.from_numpy(-wavelet).expand(a.n_sources, 1, -1),
        source_locations=torch.tensor([[[a.source_row, cell]] for cell in a.source_cells]),
        receiver_locations=receivers.expand(a.n_sources, -1, -1),
        accuracy=4,
        pml_width=_PML_CELLS,
        pml_freq=a.peak_frequency_hz,
        courant_number=_COURANT_NUMBER,
        max_vel=a.velocity_max_mps,
        model_gradient_sampling_interval=gradient_sampling,
    )
    return recorded
