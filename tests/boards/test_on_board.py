"""The installer's hands on a board whose root keeps new files to itself."""

import ast
import hashlib
import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

import boards
from boards.install.linux.shell import LocalShell, ask


def staged(*contents):
    """A tar of files as the installer sends it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for content in contents:
            entry = tarfile.TarInfo(hashlib.sha256(content).hexdigest())
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(params=[0o027, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield
    os.umask(before)


def test_what_is_installed_can_be_read_by_the_services_user_whatever_roots_umask(tmp_path, umask):
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("package/module.py", "x = 1")
    code, secret = b"print()", b"secret"
    hashes = [hashlib.sha256(content).hexdigest() for content in (wheel.getvalue(), code, secret)]
    tmp_path.chmod(0o755)
    shell, staging = LocalShell(tmp_path), {"staging": "/opt/epic/staging"}
    ask(shell, "receive", staging, staged(wheel.getvalue(), code, secret))
    ask(shell, "environment", {"folder": "/opt/epic/venv-1", "wheels": hashes[:1], **staging})
    request = {
        "folders": [["/var/lib/epic", None], ["/opt/epic/keys", 0o750]],
        "files": [
            ["/opt/epic/firmware_py/code.py", hashes[1], 0o644],
            ["/opt/epic/keys/device-0.secret", hashes[2], 0o600],
        ],
        "links": [],
        "remove": [],
        "unfinished": "/opt/epic/unfinished",
    }
    ask(shell, "commit", {**request, **staging})
    modes = {
        str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode)
        for path in tmp_path.rglob("*")
        if not path.is_symlink()
    }
    assert modes.pop("opt/epic/keys") == 0o750
    assert modes.pop("opt/epic/keys/device-0.secret") == 0o600
    assert {name for name in modes if "module.py" in name or "code.py" in name}
    for name, mode in modes.items():
        needed = 0o755 if (tmp_path / name).is_dir() else 0o644
        assert mode & needed == needed, f"{name} {mode:o}"


def test_an_old_python_can_read_it_and_say_that_it_is_too_old():
    ast.parse(
        (Path(boards.__file__).parent / "install" / "linux" / "on_board.py").read_text(),
        feature_version=(3, 6),
    )
