"""``--strict-skips`` fails on a skip that nobody expects, and on no other."""

from pathlib import Path

import pytest

CONFORMANCE = "tests/firmware_py/test_link_conformance.py"
EXPECTED = 'def test_it():\n    pytest.skip("nothing to cut between the ends of this link")\n'
UNEXPECTED = 'def test_it():\n    pytest.skip("the cat sat on it")\n'
MODULE = 'pytest.importorskip("no_such_package")\n\ndef test_it():\n    pass\n'


@pytest.fixture
def outcome(pytester: pytest.Pytester, monkeypatch):
    """Run pytest on a file of this content: ``outcome(content, *options)``."""
    # Other plugins take a second to load and play no part.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def run(content: str, *options: str, name: str = CONFORMANCE):
        path = Path(pytester.path / name)
        path.parent.mkdir(parents=True)
        path.write_text(f"import pytest\n{content}")
        return pytester.runpytest_inprocess("-p", "strict_skips", *options, name)

    return run


@pytest.mark.parametrize(
    ("content", "workers"), [(UNEXPECTED, ()), (MODULE, ()), (MODULE, ("-p", "xdist", "-n", "1"))]
)
def test_an_unexpected_skip_fails(outcome, content, workers):
    result = outcome(content, "--strict-skips", *workers)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*unexpected skips*", f"{CONFORMANCE}*", "*expected_skips.toml*"])


def test_an_expected_skip_passes(outcome):
    assert outcome(EXPECTED, "--strict-skips").ret == 0


def test_a_reason_is_expected_of_its_own_tests_alone(outcome):
    result = outcome(EXPECTED, "--strict-skips", name="tests/test_other.py")
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_without_the_option_a_skip_is_a_skip(outcome):
    assert outcome(UNEXPECTED).ret == 0


def test_an_expected_failure_is_no_skip(outcome):
    assert outcome('def test_it():\n    pytest.xfail("known")\n', "--strict-skips").ret == 0
