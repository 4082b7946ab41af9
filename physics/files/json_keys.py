"""Recognise a JSON file that this project wrote, before it is overwritten."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path


def has_keys(path: Path, keys: Collection[str]) -> bool:
    """Return True if ``path`` holds a JSON object with all of ``keys``. Raises ``OSError``."""
    try:
        content = json.loads(path.read_text())
    except ValueError:
        return False
    return isinstance(content, dict) and set(keys) <= set(content)
