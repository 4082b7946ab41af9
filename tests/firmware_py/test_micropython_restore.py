"""A board that restores a damaged file, cut at any write, under real MicroPython with its own littlefs.

On FAT, ``run("fat")`` counts what two faults at once cost, a damaged file and a cut while it is restored.
"""

import json

import micropython_unix
import pytest

pytestmark = pytest.mark.emulated
SUPPORT = micropython_unix.ROOT / "tests" / "support"

SCRIPT = """
import binascii, hashlib, json, os
import vfs
from board_storage import TORN_BYTES, CachedNor
from nor import Cut, Nor
from firmware_py.micropython import restore

FILES = {{"main.py": b"m" * 450, "firmware_py/start.mpy": bytes(range(256)) * 20, "device.json": b"{{}}"}}


def digest(data):
    return binascii.hexlify(hashlib.sha256(data).digest()).decode()


def mount(nor):
    vfs.mount(vfs.VfsFat(CachedNor(nor)) if {kind!r} == "fat" else vfs.VfsLfs2(nor, progsize=256), "/flash")
    os.chdir("/flash")


def unmount():
    os.chdir("/")
    vfs.umount("/flash")


def put(path, data):
    with open(path, "wb") as file:
        file.write(data)


def read(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None


def installed(damage):
    nor = Nor(32)
    if {kind!r} == "fat":
        vfs.VfsFat.mkfs(CachedNor(nor))
    else:
        vfs.VfsLfs2.mkfs(nor, progsize=256)
    mount(nor)
    for folder in ("firmware_py", "copy", "copy/firmware_py"):
        os.mkdir(folder)
    lines = ""
    for path, data in FILES.items():
        put(path, data)
        put("copy/" + path, data)
        lines += "%s %s copy/%s\\n" % (digest(data), path, path)
    sums = "%s\\n%s" % (digest(lines.encode()), lines)
    put("sums", sums.encode())
    put("copy/sums", sums.encode())
    for path in damage:
        put(path, FILES[path][:-7])
    unmount()
    return nor


tally = {{"cuts": 0, "main": 0, "not whole": 0}}
for damage in (("firmware_py/start.mpy",), ("device.json", "main.py")):
    left = 0
    while True:
        nor = installed(damage)
        nor.left, nor.torn_bytes = left, TORN_BYTES[left % len(TORN_BYTES)]
        left += 1
        mount(nor)
        try:
            whole = restore.whole()
        except (Cut, OSError):
            whole = None
        cut = nor.left < 0
        nor.left = None
        unmount()
        if not cut:
            break
        tally["cuts"] += 1
        try:
            mount(nor)
        except OSError:
            tally["main"] += 1
            continue
        if read("main.py") is None:
            tally["main"] += 1
        elif not restore.whole() or [path for path in FILES if read(path) != FILES[path]]:
            tally["not whole"] += 1
        unmount()
    if not whole:
        tally["not whole"] += 1
print(json.dumps(tally))
"""


def run(kind):
    path = f"{micropython_unix.ROOT}:{SUPPORT}:.frozen"
    said = micropython_unix.run(SUPPORT, SCRIPT.format(kind=kind), heap="16m", path=path, timeout_s=600.0)
    return json.loads(said.splitlines()[-1])


def test_on_littlefs_a_cut_while_a_file_is_restored_costs_nothing():
    found = run("littlefs")
    assert found.pop("cuts") > 15
    assert found == {"main": 0, "not whole": 0}
