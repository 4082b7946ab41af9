"""Follow `epic central adapt use` and `rollback` while the centre runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from central.config import ModelSection
from central.learning.versions import (
    FOLDER,
    IN_USE,
    RELEASED,
    AdaptationError,
    read_in_use,
    released_section,
    version_section,
)
from central.pipeline.decoders import MapDecoder, released_sha256
from firmware_py.runtime.log import Log

POLL_S = 1.0


class Switching:
    """Watch which adapted decoders are in use; ``watch`` needs a thread.

    ``load`` reads a decoder and ``adopt(model_hash, decoder)`` activates it. ``decoders`` are the active ones by model
    hash, ``models`` those of the configuration. If a decoder cannot be loaded, the current one stays active.
    """

    def __init__(
        self,
        data_dir: Path,
        models: Sequence[ModelSection],
        decoders: Mapping[bytes, MapDecoder],
        load: Callable[[ModelSection], tuple[bytes, MapDecoder]],
        adopt: Callable[[bytes, MapDecoder], None],
        log: Log,
    ) -> None:
        self._data_dir = data_dir
        self._models = models
        self._decoders = decoders
        self._load = load
        self._adopt = adopt
        self._log = log
        # The first look compares in any case: the choice may have changed while the centre started.
        self._seen: tuple[int, int] | None = (0, 0)

    def watch(self, stopping: threading.Event) -> None:
        """Switch decoders when the operator's choice changes, until ``stopping`` is set."""
        while not stopping.wait(POLL_S):
            self.look()

    def look(self) -> None:
        """Switch once if the choice has changed since the last look."""
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            in_use = read_in_use(self._data_dir)
        except AdaptationError as error:
            self._log.write("decoder_switch_failed", reason=str(error))
            return
        for decoder in list(self._decoders.values()):
            released = released_sha256(decoder)
            wanted = in_use.get(released, RELEASED)
            if wanted == (decoder.adaptation or {}).get("version", RELEASED):
                continue
            try:
                self._switch(released, wanted)
            except Exception as error:
                # Libraries that load a decoder raise all kinds of errors. The centre keeps its current decoder.
                self._log.write("decoder_switch_failed", version=wanted, reason=str(error))

    def _switch(self, released: str, version: int) -> None:
        if version == RELEASED:
            section = released_section(self._data_dir, self._models, released)
        else:
            section = version_section(self._data_dir, version)
        model_hash, decoder = self._load(section)
        self._adopt(model_hash, decoder)
        self._log.write("decoder_switched", model_hash=model_hash.hex(), version=version)

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = (self._data_dir / FOLDER / IN_USE).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino
