"""A microcontroller's download goes on after a reset where it was; under CPython, with time of its own."""

import errno
import os
import time
from pathlib import Path

import pytest
from nacl.signing import SigningKey
from releases import KEY, OTHER_ENCODER, FakeRollout, make_offer, make_release, sign

from boards.profile import board_names
from firmware_py.micropython import updates
from firmware_py.micropython.padding import BLOCK_BYTES, END_BYTES, length_of
from firmware_py.micropython.slots import NOTE_BYTES, OFFER, Slots
from firmware_py.micropython.spool import MAX_RECORD_BYTES
from firmware_py.micropython.updates import CHUNK_BYTES, Updater
from firmware_py.protocol import packet
from firmware_py.protocol.update_messages import decode_message

NAMES = ["manifest.json", "encoder.epicnn"]
COMPILED = bytes(range(256)) * 41


class SwitchedError(Exception):
    """The board restarts with the update."""


def restart():
    raise SwitchedError


@pytest.fixture
def rollout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, function in {
        "ticks_ms": lambda: 0,
        "ticks_add": lambda ticks_ms, delta_ms: ticks_ms + delta_ms,
        "ticks_diff": lambda a_ms, b_ms: a_ms - b_ms,
    }.items():
        monkeypatch.setattr(time, name, function, raising=False)
    new = make_release(tmp_path / "new", "new", OTHER_ENCODER, {"encoder.epicnn": COMPILED})
    return FakeRollout(sign(new, 1), 1)


def power_up():
    """The updater of a board that has just started."""
    header = packet.Record(packet.LATENT, 0, 1, 1, 0)
    key = bytes(KEY.verify_key)
    return Updater(Slots("bundle"), header, key, "a-board", NAMES, 600, lambda: None, restart)


def turn(updater, rollout):
    """One message to the centre, and its answers; True if it was a chunk."""
    asked = len(rollout.wanted)
    for answer in rollout.answers(packet.decode_record(updater.poll())):
        updater.handle(answer)
    return len(rollout.wanted) > asked


def under_way():
    files = [path for path in Path("bundle.b").iterdir() if path.name != "offer"]
    return max(files, key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.parametrize("torn", [False, True], ids=["whole", "torn"])
def test_reset_after_every_chunk_it_asks_for_the_rest(rollout, torn):
    """``torn``: what the flash was writing at the reset is lost."""
    sizes = [file.stat().st_size for file in (Path("new") / name for name in NAMES)]
    chunks = sum(-(-size // CHUNK_BYTES) for size in sizes)
    resets = 0
    with pytest.raises(SwitchedError):
        while resets < 10 * chunks:
            updater = power_up()
            while not turn(updater, rollout):
                pass
            resets += 1
            if torn and resets in (1, 6):
                path = under_way()
                path.write_bytes(path.read_bytes()[:-CHUNK_BYTES] + bytes(CHUNK_BYTES))
    assert [Path("bundle.b", name).read_bytes() for name in NAMES] == [
        Path("new", name).read_bytes() for name in NAMES
    ]
    assert Slots("bundle").version == 1 and not Slots("bundle").failure
    if not torn:
        assert len(rollout.wanted) == chunks, "no chunk is asked for twice"


def make_in_advance(room):
    for folder in (Path("bundle"), Path("bundle.b")):
        folder.mkdir()
        (folder / OFFER).write_bytes(b" " * NOTE_BYTES)
        for name in NAMES:
            (folder / name).write_bytes(b"o" * (room + END_BYTES))


def test_files_that_were_made_in_advance_keep_their_size_and_it_goes_on_from_the_last_note(
    rollout, monkeypatch
):
    monkeypatch.setattr(updates, "FLUSH_BYTES", 4 * CHUNK_BYTES)
    make_in_advance(len(COMPILED))
    sizes = [(Path("new") / name).stat().st_size for name in NAMES]
    chunks = sum(-(-size // CHUNK_BYTES) for size in sizes)
    cut_off = power_up()
    while len(rollout.wanted) < chunks - 1:
        turn(cut_off, rollout)
    again = power_up()
    with pytest.raises(SwitchedError):
        while True:
            turn(again, rollout)
    # The erase block before the note is asked for again.
    assert chunks < len(rollout.wanted) <= chunks + 4 + BLOCK_BYTES // CHUNK_BYTES
    for name, size in zip(NAMES, sizes, strict=True):
        with Path("bundle.b", name).open("rb") as file:
            assert length_of(file) == size
            assert file.read(size) == Path("new", name).read_bytes()
        assert Path("bundle.b", name).stat().st_size == len(COMPILED) + END_BYTES


def test_an_update_that_does_not_fit_into_files_made_in_advance_is_refused(rollout):
    make_in_advance(len(COMPILED) - 1)
    updater = power_up()
    for _ in range(5):
        turn(updater, rollout)
    assert not rollout.wanted
    said = "encoder.epicnn has 10496 bytes, the installation left room for 10495"
    assert any(said in report.reason for report in rollout.reports)


def install(rollout):
    """Turn the updater of a board that has just started until it restarts with the update."""
    updater = power_up()
    with pytest.raises(SwitchedError):
        for _ in range(1000):
            turn(updater, rollout)


def told_by(updater):
    return decode_message(packet.decode_record(updater.poll()).payload)


@pytest.mark.parametrize(
    ("version", "signed", "key"),
    [(0xFFFFFFFF, 0xFFFFFFFF, SigningKey(bytes(32))), (0xFFFFFFFF, 1, KEY), (1 << 40, 1, KEY), (0, 1, KEY)],
    ids=["foreign key", "other version", "too large", "none"],
)
def test_an_offer_that_is_not_as_it_was_signed_uses_up_no_version(rollout, version, signed, key):
    updater = power_up()
    offer = {"offer": vars(make_offer(sign(Path("new"), signed, key), version))}
    updater.handle(packet.Record(packet.UPDATE, 0, 1, 1, 1, payload=updates.encode(offer)))
    report = told_by(updater)
    wrong = 0 < version < 1 << 32
    assert (report.state, report.version) == (("failed", version) if wrong else ("running", 0))
    install(rollout)
    assert Slots("bundle").version == 1


@pytest.mark.parametrize("boards", [board_names(), ["brett-ä" * 40]], ids=["all boards", "not in ASCII"])
def test_a_report_fits_into_the_lines_buffer(rollout, boards):
    declined = FakeRollout(sign(Path("new"), 1, boards=boards), 1)
    updater = power_up()
    turn(updater, declined)
    record = updater.poll()
    report = decode_message(packet.decode_record(record).payload)
    assert (report.state, report.version, len(record) < MAX_RECORD_BYTES) == ("declined", 1, True)
    assert report.reason.startswith("for ['") and len(report.reason.encode()) > 190


def test_a_full_flash_uses_up_no_version(rollout, monkeypatch):
    with monkeypatch.context() as full:
        full.setattr(os, "statvfs", lambda folder: os.statvfs_result((4096, 4096, *[0] * 8)))
        updater = power_up()
        turn(updater, rollout)
        assert "bytes of flash, 0 are free" in told_by(updater).reason
    with monkeypatch.context() as full:
        full.setattr(Updater, "_write", fail)
        updater = power_up()
        for _ in range(3):
            turn(updater, rollout)
        assert "no room for the update" in rollout.reports[-1].reason
    install(rollout)
    assert Slots("bundle").version == 1


def fail(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_version_whose_files_are_not_what_was_signed_is_refused_after_a_restart(rollout):
    rollout.archive = rollout.archive.replace(COMPILED, COMPILED[::-1])
    updater = power_up()
    for _ in range(100):
        turn(updater, rollout)
    assert any("is not what was signed" in report.reason for report in rollout.reports)
    assert Slots("bundle").refusal(1)


def test_what_was_not_flushed_is_asked_for_again_after_a_power_cut(rollout, monkeypatch):
    """Each flush rewrites FAT's directory and table, so there are few."""
    monkeypatch.setattr(updates, "FLUSH_BYTES", 4 * CHUNK_BYTES)
    sizes = [file.stat().st_size for file in (Path("new") / name for name in NAMES)]
    chunks = sum(-(-size // CHUNK_BYTES) for size in sizes)
    # What they hold back is never written.
    cut_off = []
    with pytest.raises(SwitchedError):
        while len(cut_off) < chunks:
            cut_off.append(power_up())
            for _ in range(6):
                while not turn(cut_off[-1], rollout):
                    pass
    assert [Path("bundle.b", name).read_bytes() for name in NAMES] == [
        Path("new", name).read_bytes() for name in NAMES
    ]
    assert chunks < len(rollout.wanted) <= chunks + 4 * len(cut_off)


def test_another_archive_begins_anew(rollout, tmp_path):
    updater = power_up()
    while len(rollout.wanted) < 3:
        turn(updater, rollout)
    newer = make_release(tmp_path / "newer", "newer", OTHER_ENCODER, {"encoder.epicnn": COMPILED[::-1]})
    other = FakeRollout(sign(newer, 2), 2)
    updater = power_up()
    with pytest.raises(SwitchedError):
        while True:
            turn(updater, other)
    assert Path("bundle.b/encoder.epicnn").read_bytes() == COMPILED[::-1]
    assert Slots("bundle").version == 2
