"""A Linux board for tests: a real sshd with a file system of its own, and if asked a stand-in for systemd.

A private mount namespace, with layers over /etc, /home, /opt, /usr/local, /var and Python's library that are gone with
it: what is installed over ssh, the user that systemd-sysusers makes and the unit are that machine's, not this one's.
"""

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from ports import free_port
from waiting import wait_until

SSHD = "/usr/sbin/sshd"
STUBS = Path(__file__).parent / "machine"
SET_UP = r"""
set -e
mkdir -p "$FOLDER/layers"
mount -t tmpfs layers "$FOLDER/layers"
# Python's library too: what it compiled for one machine must not be taken for another's.
for name in etc home opt usr/lib/python3.11 usr/local var; do
    [ -d "/$name" ] || continue
    mkdir -p "$FOLDER/layers/$name" "$FOLDER/layers/work/$name"
    mount -t overlay -o "lowerdir=/$name,upperdir=$FOLDER/layers/$name,workdir=$FOLDER/layers/work/$name" o "/$name"
done
rm -rf /opt/epic /var/lib/epic /var/cache/epic
mount -t tmpfs run /run
mkdir -p /run/sshd
[ -z "$OPT_SIZE" ] || mount -t tmpfs -o "size=$OPT_SIZE" small /opt
[ -z "$UNAME" ] || echo "import platform; platform.machine = lambda: '$UNAME'" > /etc/python3.11/sitecustomize.py
if [ -n "$SYSTEMD" ]; then
    mkdir -p /run/systemd/system
    cp "$SYSTEMD"/* /usr/local/bin
    ln -s "$FOLDER" /run/stand-in
fi
exec "$@"
"""


class BoardMachine:
    """Reached as ``reach`` says; ``folder`` holds its keys and logs.

    ``opt_size`` is that of the disk at /opt as mount(8) has it, ``uname`` another answer of `uname -m`. With
    ``systemd`` there is a systemctl that runs the unit (tests/support/machine/systemctl); ``calls`` are its calls.
    """

    def __init__(self, folder: Path, systemd=False, opt_size="", uname="") -> None:
        if os.geteuid() or not Path(SSHD).exists() or not shutil.which("ssh"):
            pytest.skip("needs root, sshd and ssh")
        self.folder = folder
        folder.chmod(0o755)
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        shutil.copy(folder / "user.pub", folder / "authorized")
        port = free_port()
        public = (folder / "host.pub").read_text().split()[:2]
        (folder / "known").write_text(f"[127.0.0.1]:{port} {' '.join(public)}\n")
        (folder / "config").write_text(
            f"Host board\n HostName 127.0.0.1\n Port {port}\n User root\n IdentityFile {folder / 'user'}\n"
            f" UserKnownHostsFile {folder / 'known'}\n"
        )
        self.reach = ["--host", "board", "--ssh-config", str(folder / "config")]
        environment = {
            "FOLDER": str(folder),
            "OPT_SIZE": opt_size,
            "UNAME": uname,
            "PATH": os.environ["PATH"],
        }
        environment["SYSTEMD"] = str(STUBS) if systemd else ""
        daemon = [
            *(SSHD, "-D", "-e", "-f", "/dev/null", "-p", str(port), "-h", str(folder / "host")),
            *("-o", f"AuthorizedKeysFile={folder / 'authorized'}", "-o", "ListenAddress=127.0.0.1"),
            *("-o", "StrictModes=no", "-o", "PidFile=none", "-o", "UsePAM=no", "-o", "PermitRootLogin=yes"),
        ]
        with (folder / "sshd.log").open("wb") as log:
            self._daemon = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", SET_UP, "sh", *daemon], stderr=log, env=environment
            )

        def listens() -> bool:
            if self._daemon.poll() is not None:
                pytest.skip(f"no namespace of its own: {(folder / 'sshd.log').read_text().strip()[-200:]}")
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(listens, 60.0, what="sshd")

    def path(self, path: str) -> Path:
        """A file of that machine, as it is reached from here."""
        return Path(f"/proc/{self._daemon.pid}/root{path}")

    def run(self, *argv: str) -> subprocess.CompletedProcess:
        """A command on that machine, not over ssh."""
        enter = ["nsenter", f"--mount=/proc/{self._daemon.pid}/ns/mnt", *argv]
        return subprocess.run(enter, capture_output=True, text=True, check=False)

    def calls(self) -> list[str]:
        """What systemctl was asked since the last call of this."""
        file = self.folder / "calls"
        calls = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return calls

    def sessions(self) -> list[int]:
        """Processes of sshd that serve a connection."""
        children = Path(f"/proc/{self._daemon.pid}/task/{self._daemon.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def close(self) -> None:
        self.run("systemctl", "stop", "epic-device")
        for pid in self.sessions():
            os.kill(pid, 9)
        self._daemon.kill()
        self._daemon.wait()
