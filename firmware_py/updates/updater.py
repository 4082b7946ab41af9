"""Update the device over its link: download a bundle in chunks, test it, switch to it, get it confirmed.

It follows the order of ``update_messages``, with at most one message in flight. It trusts only data covered by the
signature.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nacl.signing import VerifyKey

from firmware_py.inference.bundle import Bundle, BundleError, load_bundle
from firmware_py.inference.self_test import SelfTestError
from firmware_py.protocol import packet
from firmware_py.protocol.repeater import Repeater
from firmware_py.protocol.update_messages import (
    DECLINED,
    FAILED,
    RUNNING,
    Chunk,
    ChunkRequest,
    Message,
    NotAvailable,
    Offer,
    Report,
    ReportAck,
    decode_message,
    encode_message,
)
from firmware_py.updates.archive import ArchiveError, Statement, archive_bytes, unpack, verify_statement
from firmware_py.updates.download import Download
from firmware_py.updates.slots import Slots

# Interval at which the version in use is reported, since the answer may bring an offer. Health records, if enabled,
# bring offers sooner.
REPORT_S = 300.0


@dataclass(frozen=True)
class UpdatePolicy:
    """Update policy: signing ``key``, ``board``, chunk size ``chunk_bytes``, and confirmation time ``trial_s``."""

    key: VerifyKey
    board: str
    chunk_bytes: int
    trial_s: float


class Updater:
    """``ControlHandler`` for updates.

    Args:
        header: Record with this device's device, survey, boot and model hash.
        test: Raises ``BundleError`` or ``SelfTestError`` for a bundle that this device cannot run.
        restart: Called when the slot in use differs from the one that was started.
    """

    def __init__(
        self,
        slots: Slots,
        policy: UpdatePolicy,
        header: packet.Record,
        test: Callable[[Bundle], None],
        restart: Callable[[], None],
        log: Callable[..., None],
    ) -> None:
        self._slots = slots
        self._policy = policy
        self._test = test
        self._restart = restart
        self._log = log
        self._repeater = Repeater(packet.UPDATE, header)
        self._reported = False
        self._report_again_s = 0.0
        self._complaint: Report | None = None
        self._download: Download | None = None
        self._statement: Statement | None = None
        self._trial_ends_s: float | None = None
        self.restarting = False

    def status(self) -> dict[str, Any]:
        """Return the update fields of a health record: ``version`` in use, ``state``, download progress."""
        status: dict[str, Any] = {"version": self._slots.state.version, "state": "idle"}
        if self._slots.on_trial:
            status["state"] = "trial"
        elif self._download:
            status |= {
                "state": "downloading",
                "offset": self._download.offset,
                "bytes": self._download.archive_bytes,
            }
        return status

    def poll(self, now_s: float) -> packet.Record | None:
        """Return the next question or report if it is due.

        Raises:
            SlotsError: The slots cannot be written.
        """
        if self._slots.on_trial:
            if self._trial_ends_s is None:
                self._trial_ends_s = now_s + self._policy.trial_s
            if now_s >= self._trial_ends_s and not self.restarting:
                self._slots.roll_back(
                    f"the centre did not answer within {self._policy.trial_s:g} s of the start"
                )
                self._leave()
        if self._download and self._download.complete:
            self._install(self._download)
        if self._reported and not self._download and now_s >= self._report_again_s:
            self._reported = False
        message = self._next() if self._repeater.is_due(now_s) and not self.restarting else None
        return self._repeater.record(encode_message(message), now_s) if message else None

    def _next(self) -> Message | None:
        state = self._slots.state
        if state.untold and state.failure:
            return Report(FAILED, *state.failure)
        if self._complaint:
            return self._complaint
        if not self._reported:
            return Report(RUNNING, state.version)
        if self._download:
            offset = self._download.offset
            length = min(self._policy.chunk_bytes, self._download.archive_bytes - offset)
            return ChunkRequest(self._download.sha256, offset, length)
        return None

    def handle(self, record: packet.Record, now_s: float) -> None:
        """Handle the centre's answer.

        Raises:
            PacketError: The answer is malformed.
            SlotsError: The slots cannot be written.
        """
        if record.type != packet.UPDATE or self.restarting:
            return
        message = decode_message(record.payload)
        if isinstance(message, ReportAck):
            self._report_arrived(message.version, now_s)
        elif isinstance(message, Offer):
            self._offered(message)
        elif isinstance(message, Chunk):
            self._arrived(message)
        elif isinstance(message, NotAvailable) and self._download and message.sha256 == self._download.sha256:
            self._log("update_withdrawn", version=self._statement and self._statement.version)
            self._drop()

    def close(self) -> None:
        """Do nothing: no thread and no file is open."""

    def _report_arrived(self, version: int, now_s: float) -> None:
        said = self._next()
        if not isinstance(said, Report) or said.version != version:
            return
        if said is self._complaint:
            self._complaint = None
        elif said.state == FAILED:
            self._slots.told()
        else:
            self._reported = True
            self._report_again_s = now_s + REPORT_S
            if self._slots.on_trial:
                self._slots.confirm()
                self._log("update_confirmed", version=version)
        self._repeater.go_on()

    def _offered(self, offer: Offer) -> None:
        if self._slots.on_trial or (self._download and self._download.sha256 == offer.sha256):
            return
        self._drop()
        if offer.version == self._slots.state.version:
            # The centre does not know the bundle in use yet.
            self._reported = False
            return
        try:
            statement = verify_statement(offer.statement, offer.signature, self._policy.key)
            expected = (statement.version, archive_bytes(offer.statement, statement.files_bytes))
            if (offer.version, offer.archive_bytes) != expected:
                raise ArchiveError(
                    f"update: the offer says version and bytes {offer.version, offer.archive_bytes}, what was "
                    f"signed says {expected}"
                )
        except ArchiveError as error:
            self._complain(FAILED, offer.version, str(error))
            return
        if reason := self._slots.refusal(statement.version):
            self._complain(FAILED, offer.version, reason)
        elif not statement.is_for(self._policy.board):
            boards = ", ".join(statement.boards)
            self._complain(
                DECLINED, offer.version, f"for {boards}, this is {self._policy.board or 'unnamed'}"
            )
        else:
            self._begin(offer, statement)

    def _begin(self, offer: Offer, statement: Statement) -> None:
        try:
            self._download = Download(self._slots.incoming, offer.sha256, offer.archive_bytes)
        except OSError as error:
            self._complain(FAILED, offer.version, f"no room for the update ({error})")
            return
        self._statement = statement
        self._log("update_begun", version=statement.version, offset=self._download.offset)

    def _arrived(self, chunk: Chunk) -> None:
        if not self._download or chunk.sha256 != self._download.sha256:
            return
        try:
            if self._download.append(chunk.offset, chunk.data):
                self._repeater.go_on()
        except OSError as error:
            assert self._statement
            self._complain(FAILED, self._statement.version, f"no room for the update ({error})")
            self._drop()

    def _install(self, download: Download) -> None:
        """Unpack to a temporary folder, test and switch; any fault is recorded as a failure for the centre."""
        assert self._statement
        version = self._statement.version
        fresh = self._slots.incoming / "bundle"
        try:
            with self._slots.trying(version):
                shutil.rmtree(fresh, ignore_errors=True)
                unpack(download.read(), self._policy.key, fresh)
                self._test(load_bundle(fresh))
            self._slots.switch(fresh, version)
        except (ArchiveError, BundleError, SelfTestError) as error:
            damaged_part = isinstance(error, ArchiveError) and download.resumed
            self._drop()
            if damaged_part:
                # A power cut may have damaged the download. Reporting again brings the offer once more.
                self._reported = False
                self._log("update_damaged", version=version, reason=str(error))
            else:
                self._slots.fail(version, str(error))
                self._log("update_failed", version=version, reason=str(error))
        except OSError as error:
            self._complain(FAILED, version, f"no room for the update ({error})")
            self._drop()
        else:
            self._drop()
            self._log("update_switched", version=version)
            self._leave()
        self._repeater.go_on()

    def _leave(self) -> None:
        self.restarting = True
        self._restart()

    def _complain(self, state: str, version: int, reason: str) -> None:
        self._log("update_" + state, version=version, reason=reason)
        self._complaint = Report(state, version, reason)
        self._repeater.go_on()

    def _drop(self) -> None:
        if self._download:
            self._download.discard()
        self._download = self._statement = None
