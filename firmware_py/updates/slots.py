"""Manage two bundle slots: an update goes into the unused one, and is rolled back if it fails.

    SLOTS/a/, SLOTS/b/    bundle folders, each complete or absent
    SLOTS/current         symlink to the slot in use, for people and tools
    SLOTS/state.json      the slot in use, and what is known of both; authoritative
    SLOTS/incoming/       temporary files; never used directly

Every switch, forward or back, is one atomic rename of ``state.json``. Whenever the process is killed, the slot it names
holds a complete bundle.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from firmware_py.errors import FirmwareError
from firmware_py.inference.bundle import MANIFEST, BundleError, load_bundle

NAMES = ("a", "b")
STATE = "state.json"
# Boot attempts before an unconfirmed bundle is rolled back. Also the attempts to unpack and test an update: a power cut
# may interrupt one attempt, but an update that crashes the process does so each time.
MAX_TRIAL_STARTS = 3


class SlotsError(FirmwareError, OSError):
    """The slots folder cannot be used: no disk space or no permission."""


@dataclass(frozen=True)
class State:
    """State of the slots.

    Attributes:
        version: Version of the bundle in use; 0 for the one the device was installed with.
        former: Version in the other slot; None if there is nothing to roll back to.
        highest: Highest version that was ever in use; older updates are declined.
        trial_starts: Starts since the switch; None once the bundle is confirmed.
        tried: Version and attempts of an update in unpacking or test, possibly interrupted.
        failure: Version and reason of the last failed update.
        untold: True until the centre acknowledges ``failure``.
    """

    slot: str
    seed: str
    version: int = 0
    former: int | None = None
    highest: int = 0
    trial_starts: int | None = None
    failure: tuple[int, str] | None = None
    untold: bool = False
    tried: tuple[int, int] | None = None


class Slots:
    """Bundle slots in ``folder``, filled from the installed bundle ``seed``. One process owns them until ``close``.

    A ``seed`` that differs from the last start was installed by a person. It replaces any update.

    Raises:
        BundleError: The seed is needed and is damaged.
        SlotsError: The folder cannot be written; all writing methods raise this too.
    """

    def __init__(self, folder: Path, seed: Path) -> None:
        self._folder = folder
        self.state: State
        with self._reported():
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / "lock").open("ab")
            try:
                self._claim()
                self._open(seed)
            except BaseException:
                self._lock.close()
                raise

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except SlotsError:
            raise
        except OSError as error:
            raise SlotsError(
                f"{self._folder}: cannot be kept ({error}); expected a writable folder with room"
            ) from None

    def _claim(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SlotsError(
                f"{self._folder}: another device is at work there; stop it, or give each its own [node] state_dir"
            ) from None

    def close(self) -> None:
        self._lock.close()

    @property
    def current(self) -> Path:
        """Return the bundle folder in use."""
        return self._folder / self.state.slot

    @property
    def incoming(self) -> Path:
        """Return a temporary folder on the same disk; its content may be deleted at any time."""
        folder = self._folder / "incoming"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def on_trial(self) -> bool:
        return self.state.trial_starts is not None

    def _open(self, seed: Path) -> None:
        known = _read_state(self._folder / STATE)
        installed = _seed_digest(seed)
        if known is None or (installed and installed != known.seed):
            self._install_seed(seed, installed, known)
            return
        self.state = known
        if not _is_whole(self.current):
            if known.former is not None and _is_whole(self._folder / _other(known.slot)):
                self.roll_back("the bundle is damaged on the disk")
            else:
                self._install_seed(seed, installed, known)
        self._point()

    def _install_seed(self, seed: Path, installed: str, known: State | None) -> None:
        fresh = self.incoming / "seed"
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(load_bundle(seed).folder, fresh)
        slot = _other(known.slot) if known else NAMES[0]
        self._place(fresh, slot)
        if known:
            self._put(replace(known, slot=slot, seed=installed, version=0, former=None, trial_starts=None))
        else:
            self._put(State(slot, installed))
        self._point()

    def start(self) -> Path:
        """Return the bundle folder to start with; roll back a bundle on trial after too many starts."""
        starts = self.state.trial_starts
        if starts is not None and starts >= MAX_TRIAL_STARTS:
            self.roll_back(f"started {starts} times and was never heard from")
        elif starts is not None:
            self._put(replace(self.state, trial_starts=starts + 1))
        return self.current

    def refusal(self, version: int) -> str | None:
        """Return why an update to ``version`` is declined, or None if it is accepted."""
        state = self.state
        if version < state.highest:
            return f"version {version} is a downgrade: {state.highest} was in use here; release a higher one"
        if state.failure and version == state.failure[0]:
            return f"version {version} failed here before ({state.failure[1]}); release a higher one"
        return None

    def switch(self, fresh: Path, version: int) -> None:
        """Switch to the tested bundle folder ``fresh`` (in ``incoming``), on trial."""
        slot = _other(self.state.slot)
        with self._reported():
            self._place(fresh, slot)
        self._put(
            replace(
                self.state,
                slot=slot,
                version=version,
                former=self.state.version,
                highest=max(self.state.highest, version),
                trial_starts=0,
            )
        )
        self._point()

    def confirm(self) -> None:
        """Confirm the bundle in use and end its trial: the centre has answered it."""
        self._put(replace(self.state, trial_starts=None))

    def roll_back(self, reason: str) -> None:
        """Switch back to the other slot, and store the reason for the centre."""
        state = self.state
        assert state.former is not None
        self._put(
            replace(
                state,
                slot=_other(state.slot),
                version=state.former,
                former=None,
                trial_starts=None,
                failure=(state.version, reason),
                untold=True,
            )
        )
        self._point()

    def fail(self, version: int, reason: str) -> None:
        """Store the failure of an update for the centre; this version is not tried again."""
        self._put(replace(self.state, failure=(version, reason), untold=True))

    @contextlib.contextmanager
    def trying(self, version: int) -> Iterator[None]:
        """Guard unpacking and testing: an update that crashes the process each time is recorded as failed."""
        before = self.state
        times = before.tried[1] + 1 if before.tried and before.tried[0] == version else 1
        trying = replace(before, tried=(version, times))
        if times == MAX_TRIAL_STARTS:
            reason = f"the device ended {times} times while it unpacked and tested it"
            trying = replace(trying, failure=(version, reason), untold=True)
        self._put(trying)
        try:
            yield
        finally:
            self._put(replace(before, tried=None))

    def told(self) -> None:
        """Note that the centre has acknowledged the failure."""
        self._put(replace(self.state, untold=False))

    def _place(self, fresh: Path, slot: str) -> None:
        place = self._folder / slot
        for path in (*fresh.iterdir(), fresh):
            _sync(path)
        shutil.rmtree(place, ignore_errors=True)
        fresh.rename(place)
        _sync(self._folder)

    def _put(self, state: State) -> None:
        aside = self._folder / f".{STATE}.new"
        with self._reported():
            aside.write_text(json.dumps(asdict(state)) + "\n")
            _sync(aside)
            aside.rename(self._folder / STATE)
            _sync(self._folder)
        self.state = state

    def _point(self) -> None:
        """Point ``current`` to the slot in use; after a kill in between, the next start repairs it."""
        aside = self._folder / ".current.new"
        with self._reported():
            aside.unlink(missing_ok=True)
            aside.symlink_to(self.state.slot)
            aside.rename(self._folder / "current")


def bundle_in_use(folder: Path, seed: Path) -> Path:
    """Return the bundle folder that ``Slots`` would start with; writes nothing."""
    known = _read_state(folder / STATE)
    return folder / known.slot if known and _seed_digest(seed) in ("", known.seed) else seed


def _other(slot: str) -> str:
    return NAMES[1 - NAMES.index(slot)]


def _is_whole(folder: Path) -> bool:
    try:
        load_bundle(folder)
    except BundleError:
        return False
    return True


def _seed_digest(seed: Path) -> str:
    """Return the digest that identifies the installed bundle; empty if there is none."""
    try:
        return hashlib.sha256((seed / MANIFEST).read_bytes()).hexdigest()
    except OSError:
        return ""


def _read_state(path: Path) -> State | None:
    """Read the state; None if it is missing or damaged, and the seed is used."""
    try:
        fields = json.loads(path.read_text())
        failure = fields.pop("failure")
        state = State(**fields, failure=failure and (int(failure[0]), str(failure[1])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return state if state.slot in NAMES else None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
