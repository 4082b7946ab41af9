"""Survey description: grid, sampling, wavelet, source and receiver positions, receivers of each device."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace

import numpy as np

from physics.errors import PhysicsError


class AcquisitionError(PhysicsError, ValueError):
    """A survey description is inconsistent."""


@dataclass(frozen=True)
class Acquisition:
    """Geometry and sampling of a 2-D surface survey.

    Cells are 0-based. A gather is ``(n_sources, n_time, n_receivers)``. A map is ``(1, n_depth, n_width)`` cells of
    ``dx_m``, in m/s, as in OpenFWI (Deng et al., NeurIPS 2022, Datasets and Benchmarks).

    ``device_receivers[d]`` lists the receiver indices (into ``receiver_cells``) of device ``d``. Groups may differ in
    size. Together they contain every receiver exactly once.
    """

    n_depth: int
    n_width: int
    dx_m: float
    dt_s: float
    n_time: int
    peak_frequency_hz: float
    source_cells: tuple[int, ...]
    receiver_cells: tuple[int, ...]
    source_row: int
    receiver_row: int
    device_receivers: tuple[tuple[int, ...], ...]
    velocity_min_mps: float = 1500.0
    velocity_max_mps: float = 4500.0

    def __post_init__(self) -> None:
        if self.n_time < 1:
            raise AcquisitionError(f"n_time: expected at least one sample, got {self.n_time}")
        for name in ("source_cells", "receiver_cells"):
            cells = getattr(self, name)
            if not cells or min(cells) < 0 or max(cells) >= self.n_width:
                raise AcquisitionError(
                    f"{name}: expected cells within 0..{self.n_width - 1}, got {cells or 'none'}"
                )
        for name in ("source_row", "receiver_row"):
            if not 0 <= getattr(self, name) < self.n_depth:
                raise AcquisitionError(
                    f"{name}: expected a row within 0..{self.n_depth - 1}, got {getattr(self, name)}"
                )
        held = sorted(i for group in self.device_receivers for i in group)
        if held != list(range(len(self.receiver_cells))):
            raise AcquisitionError(
                f"device_receivers: expected every receiver 0..{len(self.receiver_cells) - 1} "
                f"exactly once, got {len(held)} entries in {len(self.device_receivers)} groups"
            )
        if any(len(group) == 0 for group in self.device_receivers):
            raise AcquisitionError("device_receivers: a device without receivers records nothing")

    @classmethod
    def openfwi(cls, n_devices: int = 5, n_width: int = 70) -> Acquisition:
        """Return the benchmark's survey: 70x70 cells of 10 m, 5 shots, 70 receivers, 1 s at 1 ms."""
        return cls(
            n_depth=70,
            n_width=n_width,
            dx_m=10.0,
            dt_s=1e-3,
            n_time=1000,
            peak_frequency_hz=15.0,
            source_cells=tuple(int(i) for i in np.round(np.linspace(0, n_width - 1, 5))),
            receiver_cells=tuple(range(n_width)),
            source_row=1,
            receiver_row=1,
            device_receivers=cls.split_evenly(n_width, n_devices),
        )

    @staticmethod
    def split_evenly(n_receivers: int, n_devices: int) -> tuple[tuple[int, ...], ...]:
        """Split receivers into contiguous groups, one per device, whose sizes differ by at most one."""
        parts = np.array_split(np.arange(n_receivers), n_devices)
        return tuple(tuple(int(i) for i in part) for part in parts)

    @property
    def n_sources(self) -> int:
        return len(self.source_cells)

    @property
    def n_receivers(self) -> int:
        return len(self.receiver_cells)

    @property
    def n_devices(self) -> int:
        return len(self.device_receivers)

    @property
    def max_device_receivers(self) -> int:
        """Receivers of the largest device, which is the width of the encoder's input."""
        return max(len(group) for group in self.device_receivers)

    @property
    def gather_shape(self) -> tuple[int, int, int]:
        """``(n_sources, n_time, n_receivers)``."""
        return (self.n_sources, self.n_time, self.n_receivers)

    @property
    def map_shape(self) -> tuple[int, int, int]:
        """``(1, n_depth, n_width)``."""
        return (1, self.n_depth, self.n_width)

    def distance_m(self, cells: float | Sequence[float] | np.ndarray) -> np.ndarray:
        """Return the distances of cells along the line in metres, as x in survey.toml: 0 is the first cell's centre."""
        return np.asarray(cells) * self.dx_m

    @property
    def extent_m(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top of a map's picture in metres, as Matplotlib takes them."""
        left, right = self.distance_m((-0.5, self.n_width - 0.5))
        return float(left), float(right), self.n_depth * self.dx_m, 0.0

    def records_as(self, other: Acquisition) -> bool:
        """Return True if gathers of both surveys have the same format; devices and velocity bounds may differ."""
        return all(
            getattr(self, f.name) == getattr(other, f.name)
            for f in fields(self)
            if f.name not in ("device_receivers", "velocity_min_mps", "velocity_max_mps")
        )

    def differences(self, other: Acquisition) -> list[str]:
        """Return the names of fields that change the recordings and differ from ``other``; velocity bounds do not."""
        return [
            f.name
            for f in fields(self)
            if f.name not in ("velocity_min_mps", "velocity_max_mps")
            and getattr(self, f.name) != getattr(other, f.name)
        ]

    @property
    def twin_cells(self) -> tuple[int, ...]:
        """Cells at mirror positions of sources where no source stands; 35 in the benchmark's survey.

        A gather can be mirrored exactly if shots from these cells were modelled too (``with_twins``).
        """
        images = {self.n_width - 1 - cell for cell in self.source_cells}
        return tuple(sorted(images - set(self.source_cells)))

    @property
    def twins_shape(self) -> tuple[int, int, int]:
        """Shape ``(n_twins, n_time, n_receivers)`` of the extra shots that mirroring needs."""
        return (len(self.twin_cells), self.n_time, self.n_receivers)

    def with_twins(self) -> Acquisition:
        """Return the survey with shots from ``twin_cells`` appended to its own."""
        return replace(self, source_cells=(*self.source_cells, *self.twin_cells))

    def mirror_order(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the order of shots and receivers that mirrors a gather.

        Returns:
            Indices of shots of ``with_twins()``, ``(n_sources,)``, and of receivers, ``(n_receivers,)``. Taking these
                from a gather gives the gather of the mirrored map. None if the receivers are not symmetric.
        """
        shots, receivers = list(self.with_twins().source_cells), list(self.receiver_cells)
        images = [self.n_width - 1 - cell for cell in receivers]
        if set(images) != set(receivers):
            return None
        return (
            np.array([shots.index(self.n_width - 1 - cell) for cell in self.source_cells]),
            np.array([receivers.index(cell) for cell in images]),
        )

    def padded_device_receivers(self) -> np.ndarray:
        """Return the receivers of each device as indices ``(n_devices, max_device_receivers)``.

        Smaller devices are filled with index ``n_receivers``. In a gather padded with one receiver of zeros, that index
        selects zeros, as the encoder expects.
        """
        receivers = np.full((self.n_devices, self.max_device_receivers), self.n_receivers)
        for row, group in zip(receivers, self.device_receivers, strict=True):
            row[: len(group)] = group
        return receivers

    def device_positions(self) -> np.ndarray:
        """Return the position of each device on the line: ``(n_devices, 2)`` float32.

        Column 0 is the centre of the device's receivers, column 1 half of their extent. Both are fractions of the map's
        width (0 = left edge, 1 = right edge).
        """
        width_cells = max(self.n_width - 1, 1)
        rows = []
        for group in self.device_receivers:
            cells = np.array([self.receiver_cells[i] for i in group], dtype=np.float64)
            rows.append(
                [
                    (cells.max() + cells.min()) / 2 / width_cells,
                    (cells.max() - cells.min()) / 2 / width_cells,
                ]
            )
        return np.array(rows, dtype=np.float32)

    def to_dict(self) -> dict:
        """Return JSON-ready values; ``from_dict`` is the inverse."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: dict) -> Acquisition:
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise AcquisitionError(f"acquisition: unknown entries {unknown}; known are {sorted(known)}")
        plain = dict(values)
        for name in ("source_cells", "receiver_cells"):
            plain[name] = tuple(int(v) for v in plain[name])
        plain["device_receivers"] = tuple(_ints(group) for group in plain["device_receivers"])
        return cls(**plain)

    def digest(self) -> str:
        """Return the SHA-256 (hex) of the survey's canonical JSON."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _ints(values: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(v) for v in values)
