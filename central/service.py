"""Run the centre: one thread each to receive, to assemble and decode, to draw pictures and to check maps."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from central.config import CentralConfig, GatewaySection, ModelSection
from central.dashboard.metrics import MetricsServer, RuntimeMetrics, decode_histogram
from central.file_descriptors import raise_limit
from central.fleet.device_registry import DeviceRegistry
from central.fleet.device_views import keep_expected
from central.fleet.history import HistoryKeeper
from central.gateway.gateway import Gateway
from central.gateway.sessions import FrameAuthenticators
from central.ingest.authentication import CurveAuthenticator
from central.ingest.receiver import GATEWAYS, DeviceServices, Expected, Receiver
from central.learning.switching import Switching
from central.pipeline.decoders import MapDecoder, load_in_use, load_release
from central.pipeline.decoding import DecodedMap, Decoding
from central.pipeline.workers import Workers
from central.recordings.fetching import Fetching
from central.security.keys import KeyRing
from central.storage.database import lock
from central.storage.journal import Journal
from central.storage.journal_cursor import JournalCursor
from central.storage.retention import Retention, picture_path
from central.updates.rollout import Rollouts
from central.verification.checking import Checking
from firmware_py.links.zeromq import ZmqLink
from firmware_py.protocol import packet
from firmware_py.runtime.log import Log
from firmware_py.runtime.sd_notify import Supervisor

if TYPE_CHECKING:
    from central.dashboard.server import PageServer

PICTURES_WAITING = 100
# Longest loop pass of a healthy thread, seconds; a batch of maps takes seconds on a slow machine.
STUCK_S = 60.0


class Service:
    """Receiver, decoding and pictures around one data folder; ``live`` holds its runtime counters."""

    def __init__(
        self,
        config: CentralConfig,
        decoders: Mapping[bytes, MapDecoder],
        log: Log,
        load: Callable[[ModelSection], tuple[bytes, MapDecoder]] | None = None,
        announce: Callable[[str], None] = lambda line: None,
    ) -> None:
        """``decoders`` are those of the configuration; ``load`` reads what a rollout adds to them.

        ``announce`` gets lines for the operator's terminal.
        """
        self._announce = announce
        self._config = config.central
        self._decoders = dict(decoders)
        self._log = log
        self._stop = threading.Event()
        self._cursor = JournalCursor()
        self._pictures: queue.SimpleQueue[DecodedMap | None] = queue.SimpleQueue()
        self._decode_s = decode_histogram()
        self._expected = {h: Expected(d.n_devices, d.coding) for h, d in decoders.items()}
        self.failure: BaseException | None = None
        data_dir = self._config.data_dir
        # Open the journal first: nothing may be received that it cannot store.
        Journal(data_dir).close()
        with ExitStack() as on_failure:
            self._lock = on_failure.enter_context(lock(data_dir))
            self._decoding = self._new_decoding()
            self._retention = Retention(data_dir, config.retention, log)
            checks = self._config.consistency_check
            self._checking = Checking(data_dir, config.model, log) if checks else None
            in_use = load or partial(load_in_use, data_dir)
            self._rollouts = Rollouts(data_dir, self._decoders, in_use, self._adopt, log)
            released = load or load_release
            self._switching = Switching(data_dir, config.model, self._decoders, released, self._adopt, log)
            self._fetching = Fetching(data_dir, config.fetch, log)
            self._rollouts.restore()
            self._keep_expected()
            self._history = HistoryKeeper(data_dir, log)
            authenticator = CurveAuthenticator(self._config.keys, log) if self._config.keys else None
            self._book = self._new_registry(authenticator)
            self.receiver = self._new_receiver(authenticator)
            on_failure.callback(self.receiver.close)
            self.gateway = self._new_gateway(config.gateway)
            if self.gateway:
                on_failure.callback(self.gateway.close)
            self.live = self._new_runtime_metrics()
            self._page = self._new_page(config)
            listen = self._config.metrics_listen
            self.metrics = MetricsServer(listen, data_dir, self.live) if listen else None
            on_failure.pop_all()

    def _new_decoding(self) -> Decoding:
        workers = self._config.decode_workers
        return Decoding(
            self._config.data_dir,
            self._config.deadline_s,
            self._decoders,
            self._cursor,
            self._log,
            self._on_map,
            Workers(workers) if workers else None,
        )

    def _new_registry(self, authenticator: CurveAuthenticator | None) -> DeviceRegistry:
        return DeviceRegistry(
            self._config.data_dir,
            self._rollouts.offer,
            self._log,
            self._rollouts.check_health,
            authenticator.keys.devices if authenticator else None,
            self._fetching.requests,
        )

    def _new_receiver(self, authenticator: CurveAuthenticator | None) -> Receiver:
        handlers = {
            packet.UPDATE: self._rollouts.handle,
            packet.HELLO: self._book.handle,
            packet.HEALTH: self._book.handle,
            packet.RECORDING: self._fetching.handle,
        }
        return Receiver(
            self._config.listen,
            self._config.data_dir,
            self._expected,
            self._cursor.tell,
            self._log,
            authenticator,
            DeviceServices(handlers, self._book.traffic),
        )

    def _new_gateway(self, section: GatewaySection | None) -> Gateway | None:
        if not section:
            return None
        keys = KeyRing(self._config.keys, self._log) if self._config.keys else None
        return Gateway(section, FrameAuthenticators(keys), self._own_line, self._log)

    def _new_runtime_metrics(self) -> RuntimeMetrics:
        return RuntimeMetrics(
            self.receiver.counts,
            self._decoding.counts,
            self._cursor.waiting,
            self.gateway.counts if self.gateway else dict,
            self._decode_s,
            self._checking.counts if self._checking else Counter(),
        )

    def _new_page(self, config: CentralConfig) -> PageServer | None:
        if not config.central.page_listen:
            return None
        from central.dashboard.server import PageServer

        listen, line = config.central.page_listen, config.export_line()
        return PageServer(config.central, listen, self._log, self.live, self._announce, line)

    def stop(self, *_: object) -> None:
        """Ask ``run`` to return (signal handler)."""
        self._stop.set()

    def run(self) -> None:
        """Run until ``stop``; may be called once.

        At shutdown, complete events are decoded and stored for up to ``journal_cursor.DRAIN_S``. The rest, and events
        that still wait for devices, stay in the journal for the next start.

        Raises:
            StoreError: The database cannot be read.
        """
        raise_limit()
        received = threading.Event()
        receiving = self._thread("receiver", self._receive)
        decoding = self._thread("decoder", self._decoding.run)
        drawing = threading.Thread(target=self._draw, name="pictures", daemon=True)
        page = threading.Thread(target=self._serve_page, name="page", daemon=True)
        lines = self._thread("gateway", self._serve_lines)
        keeping = self._thread("devices", partial(self._book.watch, received))
        rolling = self._thread("rollout", partial(self._rollouts.watch, self._stop))
        fetching = self._thread("fetching", partial(self._fetching.watch, received))
        switching = self._thread("switching", partial(self._switching.watch, self._stop))
        checking = threading.Thread(target=self._check, name="checking")
        pruning = self._thread("retention", partial(self._retention.watch, self._stop))
        remembering = self._thread("history", partial(self._history.watch, received))
        drawing.start()
        decoding.start()
        receiving.start()
        lines.start()
        if not self._config.keys:
            self._log.write("insecure", reason="no keys: whoever can connect on this machine is believed")
        self._log.write("ready", endpoint=self.receiver.endpoint, models=[h.hex() for h in self._decoders])
        rolling.start()
        keeping.start()
        fetching.start()
        remembering.start()
        page.start()
        checking.start()
        switching.start()
        pruning.start()
        supervisor = Supervisor()
        while receiving.is_alive() and decoding.is_alive() and not self._stop.wait(0.2):
            now_s = time.monotonic()
            # Check each thread's progress: a hanging thread is invisible to a supervisor that watches only the process.
            if now_s - min(self.receiver.turned_s, self._decoding.turned_s) < STUCK_S:
                supervisor.alive(now_s)
        self._stop.set()
        # Close the lines first: they hold sockets of the receiver's context, which waits for them.
        lines.join()
        receiving.join()
        rolling.join()
        switching.join()
        received.set()
        self._fetching.wake()
        keeping.join()
        fetching.join()
        remembering.join()
        self._cursor.end()
        decoding.join()
        checking.join()
        pruning.join()
        self._pictures.put(None)
        drawing.join(timeout=30.0)
        page.join(timeout=10.0)
        if self.metrics:
            self.metrics.close()
        self._lock.close()
        self._log.write("stopped", **self.receiver.counts)
        if self.failure:
            raise self.failure

    def _thread(self, name: str, work: Callable[[], None]) -> threading.Thread:
        return threading.Thread(target=self._contain_failure, args=(work,), name=name)

    def _contain_failure(self, work: Callable[[], None]) -> None:
        """Stop the centre when a thread fails, so that it is never half alive."""
        try:
            work()
        except BaseException as error:
            self.failure = error
            self._stop.set()

    def _own_line(self) -> ZmqLink:
        """Return a line's in-process link to the receiver."""
        return ZmqLink(GATEWAYS, context=self.receiver.context)

    def _serve_page(self) -> None:
        if self._page:
            self._page.run(self._stop)

    def _serve_lines(self) -> None:
        if self.gateway:
            self.gateway.run(self._stop.is_set)

    def _check(self) -> None:
        if self._checking:
            self._checking.run(self._stop)

    def _adopt(self, model_hash: bytes, decoder: MapDecoder) -> None:
        """Add the decoder first, then let the receiver accept the model: every accepted record can then be decoded."""
        self._decoders[model_hash] = decoder
        self._expected[model_hash] = Expected(decoder.n_devices, decoder.coding)
        self._keep_expected()
        if self._checking:
            self._checking.adopt()

    def _keep_expected(self) -> None:
        keep_expected(
            self._config.data_dir,
            {model.hex(): decoder.n_devices for model, decoder in self._decoders.items()},
        )

    def _receive(self) -> None:
        self.receiver.run(self._stop.is_set)

    def _on_map(self, decoded: DecodedMap) -> None:
        self._decode_s.observe(decoded.decode_s)
        if not self._config.pictures:
            return
        if self._pictures.qsize() < PICTURES_WAITING:
            self._pictures.put(decoded)
        else:
            # Drop the picture: it can be drawn from the store later, and decoding must not wait.
            self._log.write("picture_skipped", survey=decoded.survey, event=decoded.event)

    def _draw(self) -> None:
        while (decoded := self._pictures.get()) is not None:
            self._draw_picture(decoded)

    def _draw_picture(self, decoded: DecodedMap) -> None:
        from central.export.render import draw_map

        path = picture_path(self._config.data_dir, decoded.survey, decoded.event)
        maps = (decoded.velocity_mps, decoded.uncertainty_mps)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draw_map(path, *maps, decoded.acquisition, decoded.devices, title=path.stem)
        except Exception as error:
            self._log.write("picture_failed", path=str(path), reason=repr(error))
