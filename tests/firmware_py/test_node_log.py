"""The log at a terminal."""

import time

from firmware_py.runtime.log import readable_line


def test_a_terminal_gets_a_line_to_read_and_nothing_that_it_obeys(monkeypatch):
    monkeypatch.setattr(time, "localtime", time.gmtime)
    line = readable_line("refused", 1_700_000_000_123_456, {"device": 3, "reason": "a\x1b[2Jb\nc"})
    assert line == "22:13:20  refused           device=3  reason=a\\x1b[2Jb\\nc"
