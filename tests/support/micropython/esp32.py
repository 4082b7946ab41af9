"""Stand-in for ``esp32``: a data partition "spool" of 64 KiB in the file ``partition-spool``."""

BLOCK_BYTES = 4096
BLOCKS = 16


class Partition:
    TYPE_DATA = 1

    @staticmethod
    def find(kind, label):
        return [Partition(label)] if (kind, label) == (Partition.TYPE_DATA, "spool") else []

    def __init__(self, label):
        path = "partition-" + label
        try:
            self._file = open(path, "r+b")
        except OSError:
            with open(path, "wb") as file:
                file.write(b"\xff" * (BLOCKS * BLOCK_BYTES))
            self._file = open(path, "r+b")

    def readblocks(self, block, buffer, offset=0):
        self._file.seek(block * BLOCK_BYTES + offset)
        self._file.readinto(buffer)

    def writeblocks(self, block, buffer, offset):
        there = bytearray(len(buffer))
        self.readblocks(block, there, offset)
        for i in range(len(buffer)):
            there[i] &= buffer[i]
        self._file.seek(block * BLOCK_BYTES + offset)
        self._file.write(there)

    def ioctl(self, op, argument):
        if op == 4:
            return BLOCKS
        if op == 5:
            return BLOCK_BYTES
        if op == 6:
            self._file.seek(argument * BLOCK_BYTES)
            self._file.write(b"\xff" * BLOCK_BYTES)
        return 0
