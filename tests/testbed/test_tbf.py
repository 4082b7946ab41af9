"""The proxy's rate against the kernel's own shaper, where root, iproute2 and tbf are there."""

import subprocess

import pytest

from testbed.emulation.links import find_link
from testbed.emulation.tbf import TbfError, cross_check, shaped_pair

pytestmark = pytest.mark.slow


@pytest.fixture
def tbf():
    try:
        with shaped_pair(1e6):
            pass
    except TbfError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", ["lte", "wifi"])
def test_neither_the_proxy_nor_tbf_is_faster_than_asked(tbf, name):
    """docs/results/testbed.md has how near they come."""
    found = cross_check(find_link(name))
    for rate in (found.proxy, found.tbf):
        assert 0 < rate < 1.05 * found.asked


def test_nothing_is_left_of_a_pair(tbf):
    with shaped_pair(1e6) as (near, far):
        there = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
        assert near in there and far in there
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert near not in left and far not in left


def test_without_root_or_iproute2_it_says_what_is_missing(monkeypatch):
    monkeypatch.setattr("testbed.emulation.tbf.shutil.which", lambda name: None)
    with pytest.raises(TbfError, match="needs root and iproute2"), shaped_pair(1e6):
        pass


def test_a_link_without_a_rate_cannot_be_checked():
    with pytest.raises(TbfError, match="loopback has no rate"):
        cross_check(find_link("loopback"))
