"""The Python interface: a released model, a gather in, a map out. Start with ``epic.load_model``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from central.config import ModelSection
from central.export.formats import FORMATS, ExportError
from central.pipeline.decoders import open_release
from central.pipeline.provenance import map_flags
from firmware_py.inference.companding import GatherError
from firmware_py.inference.encoder import Encoder
from models.inversion.decoder import DecoderError
from models.released import DEFAULT_NAME, find_release
from physics.acquisition import Acquisition
from physics.gather_checks import expected_peaks, notes_on

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
        notes: What is unusual in the gather: silent receivers, another gain than the model's, reversed polarity.
    """

    velocity_mps: np.ndarray
    uncertainty_mps: np.ndarray
    latents: np.ndarray
    present: np.ndarray
    ood_score: float | None
    ood_limit: float | None
    acquisition: Acquisition
    notes: tuple[str, ...] = ()

    @property
    def out_of_distribution(self) -> bool:
        """True if the gather is unlike those of training; the map is then likely wrong."""
        return self.ood_score is not None and self.ood_limit is not None and self.ood_score > self.ood_limit

    @property
    def flags(self) -> list[str]:
        """Why the map needs a review, one line a reason, as the centre flags it; empty for a usual map."""
        return map_flags(self.uncertainty_mps, self.acquisition, self.ood_score, self.ood_limit)

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
        """Write ``to_dataset()`` as NetCDF (CF-1.11).

        Raises:
            ExportError: The suffix is none of NetCDF.
        """
        suffixes = FORMATS["netcdf"].suffixes
        if Path(path).suffix.lower() not in suffixes:
            raise ExportError(f"{path}: its suffix is not one of netcdf ({', '.join(suffixes)}); change it")
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
            GatherError: The gather is no array of that shape, or has samples that are not finite.
            DecoderError: ``missing`` names a device that the survey lacks, or leaves none.
        """
        groups = [list(group) for group in self.acquisition.device_receivers]
        if unknown := [device for device in missing if device not in range(len(groups))]:
            raise DecoderError(f"missing: expected devices 0 to {len(groups) - 1}, got {unknown[0]}")
        shape = self.acquisition.gather_shape
        if not isinstance(gather, np.ndarray) or gather.shape != shape:
            found = getattr(gather, "shape", type(gather).__name__)
            raise GatherError(
                f"gather: expected an array {shape} (sources, samples, receivers), got {found}; import a field file "
                "with `epic data import`, read the .npy file with numpy.load"
            )
        gather = np.asarray(gather, np.float32)
        present = np.array([device not in missing for device in range(len(groups))])
        latents = np.zeros((len(groups), self._decoder.latent), np.int8)
        for device in np.flatnonzero(present):
            latents[device] = self._encoder.encode_recording(gather[:, :, groups[device]])
        velocity, uncertainty = self._decoder.decode_batch(latents[None], present[None])
        whole = self._decoder.coding.rates[0]
        found = self._decoder.ood_score(latents, present, [whole] * len(groups))
        score, limit = found if found is not None else (None, None)
        companding = self._encoder.bundle.companding
        peaks = expected_peaks(math.sinh(companding.c) / companding.k)
        return Inversion(
            *(velocity[0, 0], uncertainty[0, 0], latents, present, score, limit, self.acquisition),
            notes=tuple(notes_on(np.nan_to_num(gather, posinf=0.0, neginf=0.0), self.acquisition, peaks)),
        )


def load_model(name: str | Path = DEFAULT_NAME) -> Model:
    """Load a released model by name, or from a folder with bundle/ and decoder/.

    Raises:
        ModelNotFoundError: There is none of that name.
        BundleError, DecoderError: It is damaged, or its parts do not belong together.
    """
    return Model(find_release(name))
