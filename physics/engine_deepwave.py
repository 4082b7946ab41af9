"""Forward modelling with Deepwave (Richardson), set to agree with OpenFWI's scheme but for its absorbing edge."""

from __future__ import annotations

import numpy as np

from physics.acquisition import Acquisition
from physics.wavelet import ricker

_PML_CELLS = 10
_COURANT_NUMBER = 0.7


def model(velocity_mps: np.ndarray, acquisition: Acquisition) -> np.ndarray:
    """Gathers ``(n, S, T, R)`` float32 of maps ``(n, nz, nx)`` in m/s, one thread."""
    import deepwave
    import torch

    torch.set_num_threads(1)
    a = acquisition
    # Deepwave's sample t + 1 is OpenFWI's sample t: one sample more, the first one dropped.
    wavelet = np.zeros(a.n_time + 1, np.float32)
    wavelet[:-1] = ricker(a)
    amplitudes = torch.from_numpy(-wavelet).expand(a.n_sources, 1, -1)
    sources = torch.tensor([[[a.source_row, cell]] for cell in a.source_cells])
    receivers = torch.tensor([[a.receiver_row, cell] for cell in a.receiver_cells])
    gathers = []
    for one in velocity_mps:
        with torch.no_grad():
            *_, recorded = deepwave.scalar(
                torch.from_numpy(np.ascontiguousarray(one, np.float32)),
                a.dx_m,
                a.dt_s,
                source_amplitudes=amplitudes,
                source_locations=sources,
                receiver_locations=receivers.expand(a.n_sources, -1, -1),
                accuracy=4,
                pml_width=_PML_CELLS,
                pml_freq=a.peak_frequency_hz,
                courant_number=_COURANT_NUMBER,
                max_vel=a.velocity_max_mps,
            )
        gathers.append(recorded.numpy()[:, :, 1:].transpose(0, 2, 1))
    return np.stack(gathers).astype(np.float32)
