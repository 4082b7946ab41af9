"""A function of more than 60 lines or 7 parameters has its reason here.

A docstring does not count as lines, nor ``self`` as a parameter. The parameters of commands are not counted.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("boards", "central", "convert", "firmware_py", "models", "physics", "testbed")
MAX_LINES, MAX_PARAMETERS = 60, 7

OPTIONS = "a command: its lines are mostly its options, each with its help"
DATA_SET = "the options of a data set, which its manifest records"
RECORD = "its parameters are the fields of what it writes"
SEQUENCE = "one sequence of steps that share their state; parts of it would pass that state around"
STATE = "the fields of one time step, which the compiler keeps in registers and memory of its own"

REASONS = {
    "boards/fit/epicnn.py:_convolution": SEQUENCE,
    "boards/fit/graph.py:_read_graph": SEQUENCE,
    "boards/install/cli.py:install": OPTIONS,
    "boards/install/linux/install.py:make_plan": SEQUENCE,
    "boards/install/linux/layout.py:unit": "the text of a systemd unit, in the order in which it is read",
    "central/ingest/receiver.py:__init__": "what a receiver calls and counts with; the service alone makes one",
    "central/learning/adapt_cli.py:adapt": OPTIONS,
    "central/pipeline/decoding.py:__init__": "what decoding calls and counts with; the service alone makes one",
    "central/service.py:__init__": "opens the parts of a centre in the order in which they need each other",
    "central/verification/refine_cli.py:refine": OPTIONS,
    "convert/flow.py:convert_run": SEQUENCE,
    "convert/release.py:write_bundle": RECORD,
    "convert/verify.py:verify": "what a bundle is held against; conversion alone calls it",
    "firmware_py/micropython/device.py:__init__": "the parts of a device; a stand-in takes the place of each in tests",
    "firmware_py/micropython/updates.py:__init__": "what an update touches of a device; tests put a stand-in for each",
    "firmware_py/protocol/packet.py:__init__": RECORD,
    "firmware_py/runtime/health.py:__init__": RECORD,
    "models/cli.py:train": OPTIONS,
    "models/inversion/decoder.py:save_decoder": RECORD,
    "models/inversion/refinement.py:refine": SEQUENCE,
    "models/inversion/waveform.py:invert": SEQUENCE,
    "models/training/monitor.py:__init__": "what a monitor measures and tells; training alone makes one",
    "models/training/training.py:train": "the parts of a run: network, data, folder, budget, and what follows progress",
    "physics/cli.py:import_field_file": OPTIONS,
    "physics/dataset.py:generate_dataset": DATA_SET,
    "physics/dataset.py:_claim": DATA_SET,
    "physics/dataset.py:_chunks": DATA_SET,
    "physics/files/field/line.py:place_traces": SEQUENCE,
    "physics/files/field/segy.py:build_traces": RECORD,
    "testbed/cli.py:compare": OPTIONS,
    "testbed/comparison/compare.py:compare": SEQUENCE,
    "testbed/run.py:run_testbed": "the command's options, and where to tell its progress",
    "testbed/run.py:start_device": "what node.toml is written from",
}


def sizes(path: Path) -> dict[str, tuple[int, int]]:
    """Lines and parameters of each function of a module; of two of one name the larger counts."""
    found: dict[str, tuple[int, int]] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        lines = node.end_lineno - node.lineno + 1
        if ast.get_docstring(node):
            lines -= node.body[0].end_lineno - node.body[0].lineno + 1
        names = [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        parameters = len(names) - (names[:1] in (["self"], ["cls"]))
        before = found.get(node.name, (0, 0))
        found[node.name] = (max(lines, before[0]), max(parameters, before[1]))
    return found


@pytest.fixture(scope="module")
def large() -> dict[str, tuple[int, int]]:
    """The functions over a limit. Parameters in command-line modules are options, each with its help."""
    return {
        f"{path.relative_to(ROOT)}:{name}": size
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for name, size in sizes(path).items()
        if size[0] > MAX_LINES or (size[1] > MAX_PARAMETERS and not path.stem.endswith("cli"))
    }


def test_a_large_function_has_a_reason(large):
    unexplained = {name: size for name, size in large.items() if name not in REASONS}
    assert not unexplained, f"split them, or give the reason in REASONS (lines, parameters): {unexplained}"


def test_a_reason_is_of_a_large_function(large):
    gone = REASONS.keys() - large.keys()
    assert not gone, f"take out of REASONS what is no longer large: {sorted(gone)}"


def test_a_long_function_is_found(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("def long(self, a, b):\n    '''Doc.'''\n" + "    a += b\n" * MAX_LINES)
    assert sizes(path) == {"long": (MAX_LINES + 1, 2)}
