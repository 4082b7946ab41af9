"""The connection to a board, with a stand-in for ssh that notes what it is asked."""

import pytest

from boards.install.linux.shell import InstallError, SshShell

# A login that is not root, on a board where sudo wants a password.
SSH = """#!/bin/sh
echo "$*" >> {log}
case "$*" in
    *" -M -N -f "*) while [ "$1" != -S ]; do shift; done; touch "$2" ;;
    *"-O exit"*) while [ "$1" != -S ]; do shift; done; rm "$2" ;;
    *"id -u"*) echo 1000 ;;
    *sudo*) echo "sudo: a password is required" >&2; exit 1 ;;
esac
"""


def test_a_connection_that_is_no_use_is_closed_again(tmp_path, monkeypatch):
    log = tmp_path / "log"
    (tmp_path / "ssh").write_text(SSH.format(log=log))
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    shell = SshShell("pi@board")
    with pytest.raises(InstallError, match="needs root, and sudo says: sudo: a password is required"), shell:
        pass
    asked = log.read_text().splitlines()
    assert "-O exit" in asked[-1], "its process would stay behind"
    (socket,) = {line.split(" -S ")[1].split()[0] for line in asked}
    assert not shell._folder.exists() and socket.startswith(str(shell._folder))


def test_a_port_is_given_with_the_host(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    for host, expected in (
        ("pi@board:2222", "ssh://pi@board:2222"),
        ("pi@board", "pi@board"),
        ("pi@fe80::1", "pi@fe80::1"),
    ):
        assert expected in SshShell(host)._command(["true"])
