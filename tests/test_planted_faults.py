"""Each fault of ``benchmarks/quality/mutations.py`` can still be planted: a change of the code loses none unnoticed."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MUTATIONS = runpy.run_path(str(ROOT / "benchmarks" / "quality" / "mutations.py"))["MUTATIONS"]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_planted_fault_is_found_once_in_its_module_and_its_tests_exist(mutation):
    assert (ROOT / mutation.module).read_text().count(mutation.right) == 1
    assert mutation.wrong != mutation.right
    for test in mutation.tests:
        path, _, name = test.partition("::")
        assert f"def {name.split('[')[0]}(" in (ROOT / path).read_text() if name else (ROOT / path).exists()
