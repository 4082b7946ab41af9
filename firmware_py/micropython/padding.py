"""The length of a bundle's file that was made in advance, behind its content."""

SECTOR_BYTES, BLOCK_BYTES = 512, 4096
# A bundle's file that was made in advance ends in a block with this and its length, and a block of nothing.
ENDS, END_BYTES = b"epic-end", 2 * BLOCK_BYTES


def end_of(length):
    """The sector with the length of a file that was made in advance."""
    data = ENDS + b"%d\n" % length
    return data + bytes(SECTOR_BYTES - len(data))


def length_of(file):
    """Length of the content of an open file; the position is then its start."""
    size = file.seek(0, 2)
    if size > END_BYTES:
        file.seek(size - END_BYTES)
        end = file.read(SECTOR_BYTES)
        if end[: len(ENDS)] == ENDS:
            try:
                size = min(size, int(end[len(ENDS) :].split(b"\n")[0]))
            except ValueError:
                # Damaged; the content's SHA-256 says so.
                pass
    file.seek(0)
    return size
