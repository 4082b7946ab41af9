"""Parts of a device that talk with the centre beside its latents: health, updates."""

from __future__ import annotations

from typing import Protocol

from firmware_py.protocol import packet


class ControlHandler(Protocol):
    """Speaks in control records, which are not spooled: one that is lost is said again, or out of date."""

    def poll(self, now_s: float) -> packet.Record | None:
        """A record to send now, or None; ``now_s`` is monotonic. Asked once in each turn of the loop."""
        ...

    def handle(self, record: packet.Record, now_s: float) -> None:
        """A record from the centre that is neither acknowledgement nor refusal of a latent."""
        ...
