"""Length of the content of a preallocated bundle file. It is stored at the file's end."""

SECTOR_BYTES, BLOCK_BYTES = 512, 4096
# A preallocated file ends in two blocks. The first begins with this mark and the length; the second is empty.
ENDS, END_BYTES = b"epic-end", 2 * BLOCK_BYTES


def end_of(length):
    """Return the sector that stores the content length of a preallocated file."""
    data = ENDS + b"%d\n" % length
    return data + bytes(SECTOR_BYTES - len(data))


def length_of(file):
    """Return the length of an open file's content, and seek to its start."""
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
