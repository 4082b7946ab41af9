"""What a program writes to the disk, and when: for tests of power cuts."""

import os


def note_syncs(monkeypatch):
    """Return the list to which each synced path, and each name given by ``os.replace``, is added in order."""
    steps = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor):
        steps.append(("synced", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def note_replace(old, new):
        steps.append(("named", str(new)))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    return steps
