"""Check that test data were not used in any training that led to a run."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from pathlib import Path

from models.data.gathers import find_manifest, read_manifest
from models.errors import TrainingError
from models.training.run_config import RunConfig
from physics.files.openfwi_files import family_of, find_gather_files


@dataclass(frozen=True)
class _Drawn:
    """Samples ``first`` to ``last`` of one family's sequence for one seed; the maps are the same for every engine."""

    family: str
    seed: int
    first: int
    last: int

    def overlaps(self, other: _Drawn) -> bool:
        same = (self.family, self.seed) == (other.family, other.seed)
        return same and self.first <= other.last and other.first <= self.last


def check_held_out(config: RunConfig, data: list[Path]) -> None:
    """Raise ``TrainingError`` if any sample under ``data`` was used to train the run or its predecessors.

    A gather file overlaps if it lies in a folder of training data, symbolic links resolved. It also overlaps if the
    manifests of `epic data generate` name the same family and seed with overlapping sample numbers. The run keeps the
    numbers that it was trained on; for folders that are gone, see ``uncompared``.
    """
    mine = _files(data)
    for stage in config.stages():
        folders = [Path(folder) for folder in stage["data"]]
        theirs = _files(folders)
        # Either path may be a symbolic link to the other.
        if found := (mine & theirs) | _within(folders, mine) | _within(data, theirs):
            raise TrainingError(f"{min(found)}: was trained on; give held-out data of another seed")
        known = _drawn(theirs, stage.get("simulated")) | {_Drawn(*row) for row in stage.get("drawn", [])}
        for sample in sorted(_drawn(mine), key=str):
            if clash := next((one for one in known if one.overlaps(sample)), None):
                raise TrainingError(
                    f"held-out {sample.family}, seed {sample.seed}, samples {sample.first} to {sample.last}: of "
                    f"that seed {clash.first} to {clash.last} was trained on; give held-out data of another seed"
                )


def uncompared(config: RunConfig) -> list[str]:
    """Return a line for each folder of training data that is gone, so that no test data can be compared with it."""
    return [
        f"{folder}: expected training data of the run, got no such folder; test data are "
        + (
            "compared with it by seed and sample numbers alone"
            if stage.get("drawn")
            else "not compared with it, so make sure that they are others"
        )
        for stage in config.stages()
        for folder in stage["data"]
        if not Path(folder).is_dir()
    ]


def drawn_samples(folders: list[Path], simulated: int | None = None) -> list[list]:
    """Return family, seed, first and last number of all samples under ``folders``, as their manifests state them.

    With ``simulated``, the ranges are extended by the samples modelled during training.
    """
    return sorted(list(astuple(drawn)) for drawn in _drawn(_files(folders), simulated))


def _files(folders: list[Path]) -> set[Path]:
    return {path.resolve() for folder in folders for path in find_gather_files(folder)}


def _within(folders: list[Path], files: set[Path]) -> set[Path]:
    resolved = [folder.resolve() for folder in folders]
    return {path for path in files if any(path.is_relative_to(folder) for folder in resolved)}


def _drawn(files: set[Path], simulated: int | None = None) -> set[_Drawn]:
    """Return the sample ranges that the manifests of ``files`` state; see ``drawn_samples``."""
    found = set()
    for path in files:
        place = find_manifest(path.parent)
        manifest = read_manifest(place) if place else {}
        try:
            family, first = family_of(path), int(manifest.get("first", 0))
            if family in manifest["families"]:
                last = first + max(int(manifest["count"]), simulated or 0) - 1
                found.add(_Drawn(family, int(manifest["seed"]), first, last))
        except (KeyError, TypeError, ValueError):
            continue
    return found
