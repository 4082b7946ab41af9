"""Interface of a device's parts that talk to the centre besides latents: health, updates and recordings."""

from __future__ import annotations

from typing import Protocol

from firmware_py.protocol import packet


class ControlHandler(Protocol):
    """Handler of control records. They are not spooled: a lost one is repeated or out of date."""

    def poll(self, now_s: float) -> packet.Record | None:
        """Return a record to send now, or None. Called once per loop pass; ``now_s`` is monotonic."""
        ...

    def handle(self, record: packet.Record, now_s: float) -> None:
        """Handle a record from the centre that neither acknowledges nor refuses a latent."""
        ...

    def close(self) -> None:
        """Release what the handler holds; called once, when the device stops."""
        ...
