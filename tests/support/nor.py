"""A NOR flash behind MicroPython's block protocol: erasing sets bits, writing clears them. Runs on MicroPython too.

``left`` operations are done whole; the one after is torn, ``torn_bytes`` into it, and raises ``Cut``. Before each,
``before(block, offset, data)`` is called, without data for an erasure; ``torn`` is the flash as a cut there leaves it.
"""


class Cut(Exception):
    """The power went."""


class Nor:
    def __init__(self, blocks, block_bytes=4096, page_bytes=256):
        self.blocks = blocks
        self.block_bytes = block_bytes
        self.page_bytes = page_bytes
        self.data = bytearray(b"\xff" * (blocks * block_bytes))
        self.erases = [0] * blocks
        self.writes = 0
        # Writes to bytes that were not erased, which flash with ECC refuses.
        self.overwrites = 0
        self.left = None
        self.torn_bytes = 0
        # Blocks in which some bits are always set.
        self.worn = ()
        self.before = None

    def readblocks(self, block, buffer, offset=0):
        at = block * self.block_bytes + offset
        buffer[:] = self.data[at : at + len(buffer)]

    def writeblocks(self, block, buffer, offset=None):
        if offset is None:
            for i in range(len(buffer) // self.block_bytes):
                self.ioctl(6, block + i)
            offset = 0
        if offset % self.page_bytes or len(buffer) % self.page_bytes:
            raise ValueError(f"expected whole pages of {self.page_bytes} bytes")
        self.writes += 1
        at = block * self.block_bytes + offset
        if self.data[at : at + len(buffer)] != b"\xff" * len(buffer):
            self.overwrites += 1
        self._do(block, offset, buffer)

    def ioctl(self, op, argument):
        if op == 4:
            return self.blocks
        if op == 5:
            return self.block_bytes
        if op == 6:
            self.erases[argument] += 1
            self._do(argument, 0, None)
        return 0

    def torn(self, block, offset, data, n):
        """Another flash, on which this operation was cut after ``n`` bytes."""
        other = Nor(self.blocks, self.block_bytes, self.page_bytes)
        other.data[:] = self.data
        other._change(block, offset, data, min(n, len(data) if data else self.block_bytes))
        return other

    def _do(self, block, offset, data):
        if self.before:
            self.before(block, offset, data)
        size = len(data) if data else self.block_bytes
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self._change(block, offset, data, min(self.torn_bytes, size))
                raise Cut
        self._change(block, offset, data, size)

    def _change(self, block, offset, data, n):
        at = block * self.block_bytes + offset
        if not data:
            self.data[at : at + n] = b"\xff" * n
            return
        for i in range(n):
            if block not in self.worn or i % 64:
                self.data[at + i] &= data[i]
