"""A benchmark's work folder holds results of one set of options."""

import runpy
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
claim = runpy.run_path(str(REPOSITORY / "benchmarks" / "accuracy" / "resume.py"))["claim"]


def test_results_of_other_options_are_not_taken_for_this_runs(tmp_path):
    work = tmp_path / "new" / "work"
    claim(work, noise=0.0, maps=Path("maps.npz"))
    claim(work, noise=0.0, maps=Path("maps.npz"))
    with pytest.raises(SystemExit, match="noise 0.0 in place of 0.01; give the same options, or another"):
        claim(work, noise=0.01, maps=Path("maps.npz"))
    claim(work, noise=0.0, maps=Path("maps.npz"))
