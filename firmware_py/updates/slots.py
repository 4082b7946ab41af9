"""Two places for a bundle, of which one is in use: an update goes to the other, and back if it fails.

    SLOTS/a/, SLOTS/b/      bundle folders, each whole or not there
    SLOTS/current           symlink to the one in use, for people and tools
    SLOTS/state.json        which one is in use, and what is known of both; the one place that decides
    SLOTS/incoming/         what is on its way; nothing in it is ever used

``state.json`` is replaced by a rename, and that is the moment of every switch, there and back. Whatever is
killed at whatever moment, the slot it names holds a whole bundle.
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
# Starts a new bundle gets to be heard from; a process that dies at once uses them up. And as many an update gets to
# be unpacked and tested in: one that ends the process does so each time, a power cut does not.
MAX_TRIAL_STARTS = 3


class SlotsError(FirmwareError, OSError):
    """The folder of slots cannot be kept: no room, no permission."""


@dataclass(frozen=True)
class State:
    """``version`` is that of the bundle in use, 0 for the one the device was installed with; ``former`` that
    of the other slot, None where it holds nothing to go back to. ``highest`` is the highest that was ever in
    use: no update goes below it. ``trial_starts`` counts starts since a switch, None once the bundle in use
    was heard from. ``tried`` is the update being unpacked and tested, or one during which the process
    ended: version and how often it was begun. ``failure`` is the last update that came to nothing, version and
    reason; the centre has not been told of it while ``untold``.
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
    """The slots in ``folder``, filled from the bundle ``seed`` that the device was installed with.

    A ``seed`` that is another than last time was installed by a person, and takes the place of whatever an
    update brought. They belong to one process until ``close``. Raises ``BundleError`` for a seed that is
    needed and not whole, ``SlotsError``; so do all methods that write.
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
        """The bundle folder in use."""
        return self._folder / self.state.slot

    @property
    def incoming(self) -> Path:
        """A folder on the same disk for what is on its way; what is in it may be removed at any time."""
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
        """The bundle folder to start with; a bundle on trial that was started too often is gone back from."""
        starts = self.state.trial_starts
        if starts is not None and starts >= MAX_TRIAL_STARTS:
            self.roll_back(f"started {starts} times and was never heard from")
        elif starts is not None:
            self._put(replace(self.state, trial_starts=starts + 1))
        return self.current

    def refusal(self, version: int) -> str | None:
        """Why an update to ``version`` is not taken; None if it is."""
        state = self.state
        if version < state.highest:
            return f"version {version} is a downgrade: {state.highest} was in use here; release a higher one"
        if state.failure and version == state.failure[0]:
            return f"version {version} failed here before ({state.failure[1]}); release a higher one"
        return None

    def switch(self, fresh: Path, version: int) -> None:
        """Put the tested bundle folder ``fresh`` (in ``incoming``) in use, on trial."""
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
        """The bundle in use was heard from: its trial is over."""
        self._put(replace(self.state, trial_starts=None))

    def roll_back(self, reason: str) -> None:
        """Go back to the other slot, and remember to tell why."""
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
        """Remember to tell that an update came to nothing; it is not tried again under this version."""
        self._put(replace(self.state, failure=(version, reason), untold=True))

    @contextlib.contextmanager
    def trying(self, version: int) -> Iterator[None]:
        """Unpack and test within this: an update that ends the process each time comes to a failure, which is told."""
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
        """The centre knows of the failure."""
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
        """``current`` follows the state; a kill between the two is mended at the next start."""
        aside = self._folder / ".current.new"
        with self._reported():
            aside.unlink(missing_ok=True)
            aside.symlink_to(self.state.slot)
            aside.rename(self._folder / "current")


def bundle_in_use(folder: Path, seed: Path) -> Path:
    """The bundle folder that ``Slots`` would start with; writes nothing."""
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
    """What tells one installed bundle from another; empty where there is none any more."""
    try:
        return hashlib.sha256((seed / MANIFEST).read_bytes()).hexdigest()
    except OSError:
        return ""


def _read_state(path: Path) -> State | None:
    """The state, or None when there is none or it is damaged: then the seed is taken."""
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
