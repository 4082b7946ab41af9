"""Decode in worker processes, on machines with spare cores.

Each worker loads a decoder on first use. If a worker dies, for example of a lack of memory, its batches are returned as
lost, and the next batch starts new workers. All workers exit with the centre.
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

# Batches submitted per process: one in work, one waiting. The rest stays with the assembler.
GIVEN_EACH = 2


@dataclass(frozen=True)
class DecodeResult:
    """Result of a batch: ``maps`` (velocity and uncertainty ``(n, 1, nz, nx)``) or ``error``.

    ``given`` is the caller's context of the batch. ``lost`` is true if a worker died, over this batch or another one.
    """

    given: Any
    maps: Any = None
    error: BaseException | None = None
    lost: bool = False


class Workers:
    """Pool of ``count`` worker processes; use it from one thread."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool: ProcessPoolExecutor | None = None
        self._given: dict[Future, Any] = {}
        self._refused: list[DecodeResult] = []

    @property
    def busy(self) -> bool:
        return bool(self._given or self._refused)

    def submit(self, decoder: MapDecoder, latents: np.ndarray, present: np.ndarray, given: Any) -> None:
        """Submit a batch ``(n, n_devices, latent)``; block while all processes are busy."""
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
        """Return the batches finished since the last call.

        With ``all_of_it``, wait for every submitted batch, including those submitted during iteration.
        """
        while True:
            if all_of_it:
                wait(self._given)
            while self._refused:
                yield self._refused.pop()
            for future in [future for future in self._given if future.done()]:
                yield self._result(future)
            if not (all_of_it and self.busy):
                return

    def _result(self, future: Future) -> DecodeResult:
        given = self._given.pop(future)
        error = future.exception()
        if error is None:
            return DecodeResult(given, future.result())
        lost = isinstance(error, BrokenProcessPool)
        if lost:
            self._forget_pool()
        return DecodeResult(given, error=error, lost=lost)

    def close(self) -> None:
        """Stop the workers; unfinished batches are lost."""
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
