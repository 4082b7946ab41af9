"""Divide the process's file descriptors among its listeners, so that none of them takes all."""

from __future__ import annotations

import resource


def raise_limit() -> None:
    """Raise this process's open-file limit to the system's maximum; the default of 1,024 limits connections."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def within_limit(most: int, share: int) -> int:
    """Return the smaller of ``most`` and the open-file limit divided by ``share``."""
    return min(most, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // share)
