"""Processes that decode beside the centre's own, for a machine with cores to spare.

Each loads a decoder the first time it is asked for it. A process that dies (out of memory, say) loses what was
being drawn, which comes back as such; the next work starts new ones. None outlives the centre.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from central.pipeline.child import live_with_parent
from central.pipeline.decoders import MapDecoder

# Batches given to the pool for each process: one at work, one waiting. The rest stays with the assembler.
GIVEN_EACH = 2


@dataclass(frozen=True)
class DecodeResult:
    """What came of a batch: ``maps`` (velocity and uncertainty ``(n, 1, nz, nx)``), or ``error``.

    ``given`` is what went with the batch; ``lost``: the worker died over it, or over another.
    """

    given: Any
    maps: Any = None
    error: BaseException | None = None
    lost: bool = False


class Workers:
    """``count`` processes; used by one thread."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool: ProcessPoolExecutor | None = None
        self._given: dict[Future, Any] = {}
        self._refused: list[DecodeResult] = []

    @property
    def busy(self) -> bool:
        return bool(self._given or self._refused)

    def submit(self, decoder: MapDecoder, latents: np.ndarray, present: np.ndarray, given: Any) -> None:
        """Have a batch ``(n, n_devices, latent)`` decoded; waits while the processes have enough to do."""
        at_work = [future for future in self._given if not future.done()]
        while len(at_work) >= GIVEN_EACH * self._count:
            at_work = list(wait(at_work, return_when=FIRST_COMPLETED).not_done)
        try:
            self._pool = self._pool or ProcessPoolExecutor(
                self._count, mp_context=get_context("spawn"), initializer=live_with_parent
            )
            self._given[self._pool.submit(_decode, decoder.folder, latents, present)] = given
        except BrokenProcessPool as error:
            self._refused.append(DecodeResult(given, error=error, lost=True))
            self._forget_pool()

    def finished(self, all_of_it: bool = False) -> Iterator[DecodeResult]:
        """What has been drawn since it was asked last.

        ``all_of_it`` waits for everything given, also for what is given while this is read.
        """
        while True:
            if all_of_it:
                wait(self._given)
            while self._refused:
                yield self._refused.pop()
            for future in [future for future in self._given if future.done()]:
                yield self._drawn(future)
            if not (all_of_it and self.busy):
                return

    def _drawn(self, future: Future) -> DecodeResult:
        given = self._given.pop(future)
        error = future.exception()
        if error is None:
            return DecodeResult(given, future.result())
        lost = isinstance(error, BrokenProcessPool)
        if lost:
            self._forget_pool()
        return DecodeResult(given, error=error, lost=lost)

    def close(self) -> None:
        """End the processes; what they were given and is not finished is lost."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def _forget_pool(self) -> None:
        if self._pool:
            self._pool.shutdown(wait=False)
            self._pool = None


def _decode(folder: Path, latents: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return _decoder(folder).decode_batch(latents, present)


@cache
def _decoder(folder: Path):
    from models.inversion.decoder import load_decoder

    return load_decoder(folder)
