"""``--strict-skips``: a skip that ``tests/expected_skips.toml`` does not list fails the run."""

import fnmatch
import tomllib
from pathlib import Path

import pytest

EXPECTED = Path(__file__).parents[1] / "expected_skips.toml"


def pytest_addoption(parser):
    parser.addoption(
        "--strict-skips", action="store_true", help="fail if a skip is not in tests/expected_skips.toml"
    )


def pytest_configure(config):
    # pytest-xdist's workers report to the controlling process, which alone judges.
    if config.getoption("strict_skips") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_StrictSkips(config), "strict-skips-judge")


class _StrictSkips:
    def __init__(self, config):
        self._expected = tomllib.loads(EXPECTED.read_text())["skip"]
        self._unexpected: list[tuple[str, str]] = []

    def pytest_runtest_logreport(self, report):
        self._judge(report)

    def pytest_collectreport(self, report):
        self._judge(report)

    def _judge(self, report):
        # An expected failure is also reported as skipped; it has no place in a file.
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not any(
            fnmatch.fnmatchcase(report.nodeid, skip["tests"]) and fnmatch.fnmatchcase(reason, skip["reason"])
            for skip in self._expected
        ):
            self._unexpected.append((report.nodeid, reason))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session):
        if self._unexpected and session.exitstatus in (
            pytest.ExitCode.OK,
            pytest.ExitCode.NO_TESTS_COLLECTED,
        ):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        if self._unexpected:
            terminalreporter.section("unexpected skips", red=True)
            for nodeid, reason in self._unexpected:
                terminalreporter.line(f"{nodeid}: {reason}")
            terminalreporter.line(
                "Mend the machine or the test, or list the skip in tests/expected_skips.toml."
            )
