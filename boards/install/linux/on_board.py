"""The installer's hands on the board: runs there with the board's own Python and nothing else.

    python3 -c "THIS FILE" OPERATION REQUEST     REQUEST is JSON; the answer is JSON, on the last line

It knows nothing of EPIC: it says what is there, takes files in, and puts them in their places. The syntax is
that of Python 3.6, so that an old Python can still say that it is too old.

Files arrive in STAGING/SHA256 and count only when they are whole. ``commit`` copies them beside their places,
then renames: what is installed is the old or the new, but for the milliseconds of the renames.
"""

import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import sqlite3
import stat
import struct
import sys
import tarfile
import time
import zipfile

# e_machine of an ELF file, as `uname -m` calls it.
ELF_MACHINES = {0x3E: "x86_64", 0xB7: "aarch64", 0x28: "armv7l", 0x03: "i686"}


def facts(request):
    """Return the board's properties and what is installed."""
    root, paths = request["root"], request["paths"]
    found = _python(root)
    found.update(
        root_user=os.geteuid() == 0,
        model=_read("/proc/device-tree/model").strip("\0\n") if found["kind"] == "machine" else "",
        systemd=found["kind"] == "machine" and os.path.isdir("/run/systemd/system"),
        clock_s=time.time(),
        free_bytes=_free_bytes(_at(root, request["prefix"])),
        files={path: _seen(_at(root, path)) for path in paths},
        staged=_listed(_at(root, request["staging"])),
        installed=_json(_at(root, request["installed"])),
        environments=[
            name
            for name in _listed(_at(root, request["prefix"]))
            if os.path.isfile(os.path.join(_at(root, request["prefix"]), name, "complete"))
        ],
        unfinished=os.path.exists(_at(root, request["unfinished"])),
        slots=_json(os.path.join(_at(root, request["state"]), "slots", "state.json")),
        state_there=os.path.isdir(_at(root, request["state"])),
        waiting=_waiting(os.path.join(_at(root, request["state"]), "spool.sqlite")),
    )
    return found


def _python(root):
    """``kind`` is machine (``root`` is /), image (a system of its own) or folder; and which Python runs there."""
    if root == "/":
        machine, version, bits = platform.machine(), sys.version_info[:3], struct.calcsize("P") * 8
        libc = "".join(platform.libc_ver()[:1])
        return {"kind": "machine", "machine": machine, "python": list(version), "bits": bits, "libc": libc}
    path = os.path.join(root, "usr/bin/python3")
    if not os.path.lexists(path):
        here = _python("/")
        if os.path.isdir(os.path.join(root, "usr")):
            return dict(here, kind="image", python=[])
        return dict(here, kind="folder")
    name = os.readlink(path) if os.path.islink(path) else "python3"
    with open(os.path.join(root, "usr/bin", os.path.basename(name)), "rb") as file:
        head = file.read(20)
    machine = ELF_MACHINES.get(struct.unpack("<H", head[18:20])[0], "unknown")
    version = [int(part) for part in os.path.basename(name)[len("python") :].split(".")]
    return {
        "kind": "image",
        "machine": machine,
        "python": version,
        "bits": 64 if head[4] == 2 else 32,
        "libc": "glibc",
    }


def receive(request):
    """Receive a tar of files named by their SHA-256 from standard input; damaged files are discarded."""
    staging = _at(request["root"], request["staging"])
    os.makedirs(staging, mode=0o700, exist_ok=True)
    kept = 0
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
        for entry in archive:
            # One whose connection was lost may still wait here for the rest of its own.
            aside = os.path.join(staging, ".incoming-%d" % os.getpid())
            digest = hashlib.sha256()
            with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                content = archive.extractfile(entry)
                for block in iter(lambda content=content: content.read(1 << 20), b""):
                    digest.update(block)
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            if digest.hexdigest() == entry.name:
                os.rename(aside, os.path.join(staging, entry.name))
                kept += 1
    return {"kept": kept}


def environment(request):
    """A virtual environment of staged wheels, for the Python of ``root`` and without running it.

    A wheel is a zip file of what belongs into site-packages; scripts are not needed, so neither is pip.
    The file ``complete`` in it comes last.
    """
    root = request["root"]
    path, staging = _at(root, request["folder"]), _at(root, request["staging"])
    if os.path.isfile(os.path.join(path, "complete")):
        # Another installation created it first. Its name proves the same content, and it may be in use.
        return {}
    _staged(staging, request["wheels"])
    shutil.rmtree(path, ignore_errors=True)
    found = _python(root)
    python = "/usr/bin/python3" if found["kind"] == "image" else os.path.realpath(sys.executable)
    version = ".".join(str(part) for part in found["python"][:2])
    packages = os.path.join(path, "lib", "python" + version, "site-packages")
    os.makedirs(packages)
    os.makedirs(os.path.join(path, "bin"))
    for name in ("python", "python3"):
        os.symlink(python, os.path.join(path, "bin", name))
    with open(os.path.join(path, "pyvenv.cfg"), "w") as file:
        file.write("home = %s\ninclude-system-site-packages = false\n" % os.path.dirname(python))
    for digest in request["wheels"]:
        with zipfile.ZipFile(os.path.join(staging, digest)) as wheel:
            wheel.extractall(packages)
    os.sync()
    with open(os.path.join(path, "complete"), "w") as file:
        os.fsync(file.fileno())
    return {}


def commit(request):
    """Move staged files to their places: first everything that can fail, then the renames."""
    # Ignore a lost connection: what has begun must finish.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    root, staging = request["root"], _at(request["root"], request["staging"])
    _staged(staging, [digest for _, digest, _ in request["files"]])
    for path, mode in request["folders"]:
        os.makedirs(_at(root, path), exist_ok=True)
        if mode is not None:
            os.chmod(_at(root, path), mode)
    renames = []
    for path, digest, mode in request["files"]:
        place = _at(root, path)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        aside = _aside(place)
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            with open(os.path.join(staging, digest), "rb") as source:
                shutil.copyfileobj(source, file)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        renames.append((aside, place))
    for path, target in request["links"]:
        place = _at(root, path)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        aside = _aside(place)
        os.symlink(target, aside)
        renames.append((aside, place))
    open(_at(root, request["unfinished"]), "w").close()
    for aside, place in renames:
        os.rename(aside, place)
    for path in request["remove"]:
        _remove(_at(root, path))
    shutil.rmtree(staging, ignore_errors=True)
    os.sync()
    return {}


def remove(request):
    """Remove files and folders; return those that existed."""
    there = [path for path in request["paths"] if os.path.lexists(_at(request["root"], path))]
    for path in there:
        _remove(_at(request["root"], path))
    return {"removed": there}


def _alone(root):
    """Wait for exclusive access; an operation of a lost connection may still run for a while."""
    lock = os.open(root, os.O_RDONLY)
    last_s = time.monotonic() + 60
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > last_s:
                raise OSError("another installation is at work there; wait for its end") from None
            time.sleep(0.1)


def _staged(staging, digests):
    if not set(digests) <= set(_listed(staging)):
        raise OSError("another installation has put its files away; run it again")


def _at(root, path):
    return os.path.join(root, path.lstrip("/"))


def _aside(place):
    aside = os.path.join(os.path.dirname(place), "." + os.path.basename(place) + ".new")
    _remove(aside)
    return aside


def _remove(path):
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def _seen(path):
    """Return a file's hash and mode or a link's target, or None if neither exists."""
    if os.path.islink(path):
        return {"target": os.readlink(path)}
    try:
        with open(path, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
            status = os.fstat(file.fileno())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    return {"sha256": digest, "mode": stat.S_IMODE(status.st_mode)}


def _free_bytes(path):
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def _listed(path):
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def _read(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _json(path):
    try:
        return json.loads(_read(path))
    except ValueError:
        return None


def _waiting(path):
    """Return the number of unacknowledged records in the spool, or None without a spool."""
    if not os.path.exists(path):
        return None
    try:
        database = sqlite3.connect("file:" + path + "?mode=ro", uri=True, timeout=5)
        try:
            return database.execute("SELECT count(*) FROM record WHERE refused IS NULL").fetchone()[0]
        finally:
            database.close()
    except sqlite3.Error:
        return None


OPERATIONS = {f.__name__: f for f in (facts, receive, environment, commit, remove)}

if __name__ == "__main__":
    # Root's umask may be 027 or 077, and the service's user could not read the files. Secrets get their own modes.
    os.umask(0o022)
    try:
        name, asked = sys.argv[1], json.loads(sys.argv[2])
        if name in ("environment", "commit", "remove"):
            _alone(asked["root"])
        answer = {"answer": OPERATIONS[name](asked)}
    except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        answer = {"error": str(error)}
    print("\n" + json.dumps(answer))
