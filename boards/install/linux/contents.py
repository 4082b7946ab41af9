"""List the files to install on a Linux board."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import firmware_py
from boards.install.linux.layout import PREFIX, SYSUSERS, TMPFILES, UNIT, Layout, sysusers, tmpfiles, unit
from boards.install.settings import Settings, key_files, node_toml
from boards.profile import Board
from firmware_py.inference.bundle import MANIFEST, Bundle, compiled_encoder, load_bundle

FORMAT = "epic-installed/1"
FIRMWARE = Path(firmware_py.__file__).parent


@dataclass(frozen=True)
class InstallRequest:
    """Request for an installation. Without ``wheels``, packages come from the registry."""

    board: Board
    bundle: Path
    settings: Settings
    wheels: Path | None = None
    start: bool = True


@dataclass(frozen=True)
class Content:
    data: bytes
    mode: int = 0o644

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def contents(order: InstallRequest, layout: Layout) -> dict[str, Content]:
    """Return every file to install except packages, by its path on the board.

    Raises:
        InstallError: A file cannot be made.
    """
    settings = order.settings
    files = {
        f"{PREFIX}/firmware_py/{path.relative_to(FIRMWARE)}": Content(path.read_bytes())
        for path in sorted(FIRMWARE.rglob("*.py"))
        if FIRMWARE / "micropython" not in path.parents
    }
    bundle = load_bundle(order.bundle)
    for name in (*bundle.manifest["files"], MANIFEST):
        files[f"{PREFIX}/bundle/{name}"] = Content((order.bundle / name).read_bytes())
    for key in key_files(settings):
        files[key.path] = Content(key.content, 0o600 if key.private else 0o644)
    accelerator = _accelerator(order.board, bundle)
    text = node_toml(settings, order.board.name, layout, accelerator)
    files[f"{PREFIX}/node.toml"] = Content(text.encode())
    port = settings.endpoint if settings.kind == "serial" else ""
    text = unit(layout, settings.device, port, settings.incoming, settings.replay, accelerator)
    files[UNIT] = Content(text.encode())
    files[SYSUSERS] = Content(sysusers(layout, accelerator).encode())
    files[TMPFILES] = Content(tmpfiles(layout).encode())
    return files


def _accelerator(board: Board, bundle: Bundle) -> str:
    """Return the accelerator to use: the board's Edge TPU if the bundle was compiled for it, else empty."""
    has_one = board.runtime == "tflite-runtime-edgetpu"
    return "edgetpu" if has_one and compiled_encoder("edgetpu") in bundle.manifest["files"] else ""


def record(
    order: InstallRequest, files: dict[str, Content], links: dict[str, str], environment: str
) -> bytes:
    """Return the installation record for `status`, `uninstall` and the next installation."""
    bundle = load_bundle(order.bundle)
    firmware = [files[path].sha256 for path in sorted(files) if "/firmware_py/" in path]
    record = {
        **described(order.board, order.settings, bundle, firmware),
        "environment": environment,
        "paths": sorted((*files, *links)),
    }
    return (json.dumps(record, indent=2) + "\n").encode()


def described(board: Board, settings: Settings, bundle: Bundle, firmware: Iterable[str]) -> dict[str, Any]:
    """Return the record's entries common to all kinds of boards; ``firmware`` holds the hashes of its code."""
    return {
        "format": FORMAT,
        "board": board.name,
        "device": settings.device,
        "survey": settings.survey,
        "bundle": bundle.name,
        "model_hash": bundle.model_hash.hex(),
        "firmware": digest(*firmware)[:12],
    }


def digest(*parts: str) -> str:
    return digest_of(" ".join(parts).encode())


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
