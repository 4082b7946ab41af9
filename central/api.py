"""The Python interface: a released model, a gather in, a map out. Start with ``epic.load_model``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from central.config import ModelSection
from central.errors import CentralError
from central.pipeline.decoders import open_release
from firmware_py.inference.encoder import Encoder
from physics.acquisition import Acquisition

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ZOO = Path(__file__).parents[1] / "models" / "zoo"


class ModelNotFoundError(CentralError, ValueError):
    """No released model has this name, and no folder of a model is there."""


@dataclass(frozen=True)
class Inversion:
    """One predicted map.

    Attributes:
        velocity_mps: P-wave velocity, ``(nz, nx)`` float32, m/s.
        uncertainty_mps: Expected absolute error of each cell (Laplace scale), ``(nz, nx)`` float32, m/s.
        latents: What the devices would send, ``(n_devices, latent)`` int8.
        present: Which devices were used, ``(n_devices,)`` bool.
        ood_score: How unlike the training gathers this one is; about 1 for a usual one. None for models without it.
        ood_limit: The score that 1 % of usual gathers exceed.
        acquisition: The survey of the map.
    """

    velocity_mps: np.ndarray
    uncertainty_mps: np.ndarray
    latents: np.ndarray
    present: np.ndarray
    ood_score: float | None
    ood_limit: float | None
    acquisition: Acquisition

    @property
    def out_of_distribution(self) -> bool:
        """True if the gather is unlike those of training; the map is then likely wrong."""
        return self.ood_score is not None and self.ood_limit is not None and self.ood_score > self.ood_limit

    def plot(self, true_mps: np.ndarray | None = None) -> Figure:
        """Draw velocity and uncertainty, beside the true map ``(nz, nx)`` in m/s where one is given."""
        from central.export.render import Row, comparison_figure

        return comparison_figure(
            [Row("", true_mps, self.velocity_mps, self.uncertainty_mps)], self.acquisition
        )

    def to_dataset(self) -> Any:
        """Return an ``xarray.Dataset``: ``velocity`` and ``uncertainty`` on ``depth`` and ``distance`` in metres."""
        from central.export.cf import map_dataset

        return map_dataset(self.velocity_mps, self.uncertainty_mps, self.acquisition)

    def to_netcdf(self, path: str | Path) -> None:
        """Write ``to_dataset()`` as NetCDF (CF-1.11)."""
        self.to_dataset().to_netcdf(path, engine="h5netcdf")


class Model:
    """A released model: the devices' int8 encoder and the centre's decoder, both on this machine."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        section = ModelSection(bundle=folder / "bundle", decoder=folder / "decoder")
        bundle, self._decoder = open_release(section)
        self._encoder = Encoder(bundle)
        self.acquisition: Acquisition = self._decoder.acquisition

    def invert(self, gather: np.ndarray, missing: Sequence[int] = ()) -> Inversion:
        """Predict the map below one gather.

        Args:
            gather: Recording of all shots, ``acquisition.gather_shape`` = ``(n_sources, n_time, n_receivers)``, in
                the benchmark's amplitudes (a peak of 20 to 60).
            missing: Devices to leave out, by number from 0.

        Returns:
            The map with its uncertainty.

        Raises:
            GatherError: The gather has another shape, or samples that are not finite.
            DecoderError: No device is left.
        """
        groups = [list(group) for group in self.acquisition.device_receivers]
        gather = np.asarray(gather, np.float32)
        if gather.shape != self.acquisition.gather_shape:
            from firmware_py.inference.companding import GatherError

            raise GatherError(
                f"gather: expected {self.acquisition.gather_shape} (sources, samples, receivers), got {gather.shape}; "
                "import a field file with `epic data import`"
            )
        present = np.array([device not in missing for device in range(len(groups))])
        latents = np.zeros((len(groups), self._decoder.latent), np.int8)
        for device in np.flatnonzero(present):
            latents[device] = self._encoder.encode_recording(gather[:, :, groups[device]])
        velocity, uncertainty = self._decoder.decode_batch(latents[None], present[None])
        whole = self._decoder.coding.rates[0]
        found = self._decoder.ood_score(latents, present, [whole] * len(groups))
        score, limit = found if found is not None else (None, None)
        return Inversion(velocity[0, 0], uncertainty[0, 0], latents, present, score, limit, self.acquisition)


def load_model(name: str | Path = "epic-small-128") -> Model:
    """Load a released model by name, or from a folder with bundle/ and decoder/.

    Raises:
        ModelNotFoundError: There is none of that name.
        BundleError, DecoderError: It is damaged, or its parts do not belong together.
    """
    folder = Path(name) if (Path(name) / "bundle").is_dir() else ZOO / str(name)
    if not (folder / "bundle").is_dir():
        known = ", ".join(sorted(path.name for path in ZOO.iterdir() if (path / "bundle").is_dir()))
        raise ModelNotFoundError(
            f"model: expected one of {known}, or a folder with bundle/ and decoder/; got {name}"
        )
    return Model(folder)
