"""Compare a board's files with their SHA-256 at power-up, and restore damaged ones from their second copies.

It uses nothing else of the program, which may be damaged. ``main.py`` calls it, or its own second copy.
"""

import binascii
import gc
import hashlib
import os
import sys

# Lines of SHA-256, path and path of the second copy, behind a line with the SHA-256 of all of them.
SUMS = ("sums", "copy/sums")
# Not blank once an update has come, which has its own second copy: the bundle before it.
UPDATED = ("slots.0", "slots.1")


def whole():
    """Restore damaged files; return True if the program can start, else print why not."""
    lost = restore()
    # Packages were imported with this module, perhaps as damaged; and its memory can go.
    for name in list(sys.modules):
        if name.startswith("firmware_py") or name.startswith("copy"):
            del sys.modules[name]
    gc.collect()
    if lost:
        print("epic: %s: damaged, without an intact second copy; install again" % ", ".join(lost))
    return not lost


def restore():
    """Restore damaged files from their second copies; return those that cannot be."""
    updated = any(says_something(path) for path in UPDATED)
    lost = []
    for line in read_sums():
        expected, path, copy = line.split(" ")
        if (updated and path.startswith("bundle/")) or sum_of(path) == expected:
            continue
        if sum_of(copy) != expected:
            lost.append(path)
            continue
        copy_file(copy, path + ".new")
        replace(path + ".new", path)
        print("%s was damaged; restored from its second copy" % path)
    return lost


def read_sums():
    """Return the lines of the first intact file of sums; no lines if there is none."""
    for path in SUMS:
        try:
            with open(path, "rb") as file:
                own = file.readline().strip()
                rest = file.read()
        except OSError:
            continue
        if binascii.hexlify(hashlib.sha256(rest).digest()) == own:
            return rest.decode().strip().split("\n")
    if size_of(SUMS[0]) is not None:
        print("sums: damaged, nothing is compared; install again")
    return []


def sum_of(path):
    """Return the SHA-256 of a file in hex, None if it is missing."""
    made = hashlib.sha256()
    block = bytearray(512)
    try:
        with open(path, "rb") as file:
            while n := file.readinto(block):
                made.update(memoryview(block)[:n])
    except OSError:
        return None
    return binascii.hexlify(made.digest()).decode()


def copy_file(source, target):
    block = bytearray(512)
    with open(source, "rb") as file, open(target, "wb") as copy:
        while n := file.readinto(block):
            copy.write(memoryview(block)[:n])


def replace(new, path):
    """Rename ``new`` to ``path``; littlefs replaces an existing file at once."""
    try:
        os.rename(new, path)
    except OSError:
        # FAT does not. After a cut here the file is missing, and restored again.
        os.remove(path)
        os.rename(new, path)


def says_something(path):
    """Return True if a file has any text. On FAT the installer leaves preallocated files blank."""
    try:
        with open(path, "rb") as file:
            return bool(file.read().strip())
    except OSError:
        return False


def size_of(path):
    """Return the size of a file in bytes, None if it is missing."""
    try:
        return os.stat(path)[6]
    except OSError:
        return None
