"""A board on FAT that is cut while an update comes, under real MicroPython with its own FAT."""

import json

import micropython_unix
import pytest

pytestmark = pytest.mark.emulated
SUPPORT = micropython_unix.ROOT / "tests" / "support"

SCRIPT = """
import json
from board_update import Life
life = Life(**{options})
life.run()
print(json.dumps([life.copies, life.asked, life.most, life.cost]))
"""


def run(**options):
    path = f"{micropython_unix.ROOT}:{SUPPORT}:.frozen"
    said = micropython_unix.run(
        SUPPORT, SCRIPT.format(options=options), heap="64m", path=path, timeout_s=900.0
    )
    return json.loads(said.splitlines()[-1])


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("holds_back", [False, True], ids=["at once", "held back"])
def test_a_cut_at_any_write_of_an_update_costs_neither_program_nor_bundle(holds_back, version):
    cuts, asked, most, cost = run(holds_back=holds_back, version=version, shift=3)
    assert cuts >= 30 and most <= asked
    assert cost == {"program": 0, "bundle": 0, "stuck": 0}


def test_files_that_were_not_made_in_advance_cost_the_program():
    assert run(holds_back=True, in_place=False)[3]["program"] > 0
