"""Fixtures and hooks that tests of several packages share."""

import stat

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["pytester", "strict_skips"]

# A busy machine is no fault of what is tested.
settings.register_profile("epic", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("epic")

# What version 16 writes, as quoted in google-coral/edgetpu issues 342 and 490.
EDGETPU_SAID = """Edge TPU Compiler version 16.0.384591198

Model compiled successfully in 231 ms.

Input model: encoder.tflite
Input size: 222.91KiB
Output model: encoder_edgetpu.tflite
Output size: 276.38KiB
On-chip memory used for caching model parameters: 241.75KiB
On-chip memory remaining for caching model parameters: 7.46MiB
Off-chip memory used for streaming uncached model parameters: 0.00B
Number of Edge TPU subgraphs: 1
Total number of operations: 8
Operation log: encoder_edgetpu.log
"""


def pytest_collection_modifyitems(items):
    """Begin with the files that need real time: a long one that begins last leaves a core idle."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture
def fake_edgetpu(tmp_path_factory, monkeypatch):
    """Put an ``edgetpu_compiler`` alone on PATH that logs rows of (operator, count, status), or fails with a line."""
    folder = tmp_path_factory.mktemp("bin")

    def make(rows=(), fails=""):
        table = "".join(f"{name:<30} {count:<10} {status}\n" for name, count, status in rows)
        (folder / "said").write_text(EDGETPU_SAID)
        (folder / "log").write_text(
            f"Edge TPU Compiler version 16.0.384591198\n\nOperator  Count  Status\n\n{table}"
        )
        script = folder / "edgetpu_compiler"
        # The arguments are those of the real one: -s -o FOLDER MODEL.
        works = (
            f"/bin/cat {folder}/said; /bin/cat {folder}/log\n"
            f'/bin/cp "$4" "$3/encoder_edgetpu.tflite"; /bin/cp {folder}/log "$3/encoder_edgetpu.log"'
        )
        script.write_text(f"#!/bin/sh\n{f'echo {fails!r}; exit 1' if fails else works}\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(folder))

    return make
