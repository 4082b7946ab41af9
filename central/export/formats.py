"""Export maps for other programs. A new format is a writer and a line in ``FORMATS``."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from central.export import cf, segy
from central.export.errors import ExportError
from central.export.line import Line
from central.storage.map_store import StoredMap
from physics.acquisition import Acquisition

__all__ = ["FORMATS", "ExportError", "Line", "export_map", "format_of"]

Writer = Callable[[Path, StoredMap, Acquisition, Line | None], None]


@dataclass(frozen=True)
class Format:
    """Format of exported maps.

    Attributes:
        suffixes: Of its files, the usual one first.
        write: Fills a path that does not exist.
        folder: True if that path becomes a folder.
        needs: Package of the extra ``geo`` that ``write`` imports, if any.
    """

    suffixes: tuple[str, ...]
    write: Writer
    folder: bool = False
    needs: str | None = None

    @property
    def is_installed(self) -> bool:
        return self.needs is None or importlib.util.find_spec(self.needs) is not None


def _write_npy(path: Path, stored: StoredMap, acquisition: Acquisition, line: Line | None) -> None:
    """float32 ``(2, nz, nx)``: velocity then uncertainty, m/s."""
    with path.open("wb") as file:
        np.save(file, np.stack([stored.velocity_mps, stored.uncertainty_mps]))


def _write_png(path: Path, stored: StoredMap, acquisition: Acquisition, line: Line | None) -> None:
    from central.export.render import draw_map

    title = f"survey {stored.survey}, event {stored.event}"
    draw_map(
        path, stored.velocity_mps, stored.uncertainty_mps, acquisition, stored.provenance["devices"], title
    )


FORMATS = {
    "npy": Format((".npy",), _write_npy),
    "netcdf": Format((".nc", ".nc4", ".netcdf"), cf.write_netcdf),
    "zarr": Format((".zarr",), cf.write_zarr, folder=True, needs="zarr"),
    "segy": Format((".sgy", ".segy"), segy.write_segy, needs="segyio"),
    "png": Format((".png",), _write_png),
}


def format_of(out: Path, kind: str | None = None) -> str:
    """Return the format of a file by its suffix; ``kind``, if given, must agree.

    Raises:
        ExportError: The format is unknown or contradicts the suffix.
    """
    if kind is not None and kind not in FORMATS:
        raise ExportError(f"export: expected one of {', '.join(FORMATS)}; got {kind!r}")
    suffix = out.suffix.lower()
    named = next((name for name, known in FORMATS.items() if suffix in known.suffixes), None)
    if kind is None and named is None:
        known = ", ".join(f"{name} ({', '.join(form.suffixes)})" for name, form in FORMATS.items())
        raise ExportError(
            f"{out}: expected the suffix of a format, {known}; got {suffix or 'none'!r}; or give --format"
        )
    archive = kind == "zarr" and suffix == ".zip"
    if kind is not None and (archive or named not in (None, kind)):
        raise ExportError(
            f"{out}: its suffix is not one of {kind} ({', '.join(FORMATS[kind].suffixes)}); change it, or leave out "
            "--format"
        )
    return kind or str(named)


def export_map(stored: StoredMap, kind: str, out: Path, line: Line | None = None) -> None:
    """Write ``stored`` to ``out`` in the format ``kind`` of ``FORMATS``; the file appears when whole.

    ``line``, where known, adds coordinates to NetCDF, Zarr and SEG-Y. Raises ``ExportError``.
    """
    if kind not in FORMATS:
        raise ExportError(f"export: expected one of {', '.join(FORMATS)}; got {kind!r}")
    form = FORMATS[kind]
    if not form.is_installed:
        raise ExportError(
            f"export: {kind} needs {form.needs}; install it with: pip install -e '.[geo]' in the clone"
        )
    acquisition = Acquisition.from_dict(stored.provenance["acquisition"])
    try:
        if not out.parent.is_dir():
            raise ExportError(f"{out}: no such folder {out.parent}; create it first")
        if out.is_dir() and not (form.folder and cf.is_zarr(out)):
            raise ExportError(f"{out}: is a folder; give the name of a file in it")
        temporary = out.with_name(f".{out.name}.tmp")
        try:
            form.write(temporary, stored, acquisition, line)
            if form.folder:
                cf.replace_folder(temporary, out)
            else:
                os.replace(temporary, out)
        finally:
            with contextlib.suppress(OSError):
                if temporary.is_dir():
                    shutil.rmtree(temporary)
                else:
                    temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ExportError(f"{out}: cannot be written ({error.strerror or error})") from None
