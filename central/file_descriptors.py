"""Divide the process's file descriptors among those who accept connections, so that none takes them all."""

from __future__ import annotations

import resource


def raise_limit() -> None:
    """Raise this process's open-file limit to the system's maximum; the default of 1,024 limits connections."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def within_limit(most: int, share: int) -> int:
    """Return ``most``, or 1/``share`` of the open-file limit where that is less."""
    return min(most, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // share)
