"""Two slots: which bundle is in use after every turn, and after a kill between any two writes."""

import json
import os
import shutil

import pytest
from tiny import ENCODER, bundle_fields

from firmware_py.inference.bundle import BundleError, create_bundle, load_bundle
from firmware_py.updates import slots as module
from firmware_py.updates.slots import MAX_TRIAL_STARTS, Slots, SlotsError, bundle_in_use


@pytest.fixture
def seed(tmp_path):
    return named(tmp_path / "seed", "installed")


def named(folder, name):
    create_bundle(folder, ENCODER, {**bundle_fields(), "name": name})
    return folder


@pytest.fixture
def opened(tmp_path, seed):
    """Opens the slots; closes them after the test."""
    held = []

    def open_slots():
        while held:
            held.pop().close()
        held.append(Slots(tmp_path / "slots", seed))
        return held[-1]

    yield open_slots
    while held:
        held.pop().close()


def name_of(slots):
    return load_bundle(slots.current).name


def update(slots, version):
    slots.switch(named(slots.incoming / "bundle", f"v{version}"), version)


def test_a_device_starts_with_what_it_was_installed_with(opened, tmp_path):
    slots = opened()
    assert name_of(slots) == "installed"
    assert (slots.state.version, slots.on_trial) == (0, False)
    assert os.readlink(tmp_path / "slots" / "current") == "a"


def test_an_update_is_on_trial_until_it_is_heard_from(opened, tmp_path):
    slots = opened()
    update(slots, 3)
    slots.start()
    assert (name_of(slots), slots.on_trial) == ("v3", True)
    assert os.readlink(tmp_path / "slots" / "current") == "b"
    slots.confirm()
    again = opened()
    assert (name_of(again), again.on_trial, again.state.version) == ("v3", False, 3)


def test_a_roll_back_uses_the_former_bundle_and_keeps_the_reason(opened):
    slots = opened()
    update(slots, 3)
    slots.confirm()
    update(slots, 4)
    slots.roll_back("no answer")
    again = opened()
    assert (name_of(again), again.state.version, again.on_trial) == ("v3", 3, False)
    assert again.state.failure == (4, "no answer")
    assert again.state.untold
    again.told()
    assert not opened().state.untold


def test_a_bundle_that_never_stays_up_is_gone_back_from(opened):
    update(opened(), 3)
    for _ in range(MAX_TRIAL_STARTS):
        slots = opened()
        slots.start()
        assert name_of(slots) == "v3"
    slots = opened()
    slots.start()
    assert name_of(slots) == "installed"
    assert slots.state.failure == (3, "started 3 times and was never heard from")


def test_downgrades_and_what_failed_here_are_refused(opened):
    slots = opened()
    assert slots.refusal(1) is None
    update(slots, 5)
    slots.confirm()
    assert slots.refusal(4) == "version 4 is a downgrade: 5 was in use here; release a higher one"
    assert slots.refusal(6) is None
    slots.fail(6, "other latents")
    assert slots.refusal(6) == "version 6 failed here before (other latents); release a higher one"
    assert slots.refusal(7) is None
    update(slots, 7)
    slots.roll_back("no answer")
    assert "downgrade: 7" in slots.refusal(5)
    assert "failed here before" in opened().refusal(7)


def test_another_bundle_installed_by_hand_takes_the_place_of_updates(opened, seed, tmp_path):
    update(opened(), 3)
    shutil.rmtree(seed)
    named(seed, "replaced")
    assert load_bundle(bundle_in_use(tmp_path / "slots", seed)).name == "replaced"
    slots = opened()
    assert (name_of(slots), slots.state.version, slots.on_trial) == ("replaced", 0, False)
    assert slots.refusal(2) is not None, "what was in use is remembered"
    update(slots, 4)
    slots.confirm()
    assert name_of(opened()) == "v4"
    assert load_bundle(bundle_in_use(tmp_path / "slots", seed)).name == "v4"


def test_a_seed_that_is_gone_is_not_missed(opened, seed):
    update(opened(), 3)
    shutil.rmtree(seed)
    assert name_of(opened()) == "v3"


@pytest.mark.parametrize("confirmed", [True, False])
def test_a_bundle_that_was_damaged_on_the_disk_is_gone_back_from(opened, confirmed):
    slots = opened()
    update(slots, 3)
    if confirmed:
        slots.confirm()
    (slots.current / "encoder.tflite").write_bytes(b"")
    again = opened()
    assert name_of(again) == "installed"
    assert again.state.failure == (3, "the bundle is damaged on the disk")


def test_with_both_slots_damaged_the_seed_is_installed_again(opened, tmp_path):
    update(opened(), 3)
    for slot in "ab":
        (tmp_path / "slots" / slot / "manifest.json").unlink()
    assert name_of(opened()) == "installed"


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"slot": "c"}', '{"failure": null, "slot": "../x", "seed": ""}']
)
def test_a_damaged_state_falls_back_on_the_seed(opened, tmp_path, content):
    update(opened(), 3)
    (tmp_path / "slots" / "state.json").write_text(content)
    assert name_of(opened()) == "installed"


def test_neither_state_nor_seed_is_an_error_in_one_line(opened, seed):
    shutil.rmtree(seed)
    with pytest.raises(BundleError, match="expected a bundle folder"):
        opened()


def test_slots_belong_to_one_device(opened, tmp_path, seed):
    opened()
    with pytest.raises(SlotsError, match="another device is at work there"):
        Slots(tmp_path / "slots", seed)


def test_a_folder_that_cannot_be_written_is_said(tmp_path, seed):
    (tmp_path / "slots").write_text("a file")
    with pytest.raises(SlotsError, match="expected a writable folder with room"):
        Slots(tmp_path / "slots", seed)


class Killed(BaseException):
    """The power went."""


@pytest.mark.parametrize("turn", ["first start", "switch", "roll_back", "reinstall"])
def test_a_kill_before_any_write_leaves_the_old_bundle_or_the_new(opened, seed, tmp_path, monkeypatch, turn):
    """Every rename, sync and removal in turn is the last thing that does not happen any more."""
    killed = 0
    for survived in range(60):
        shutil.rmtree(tmp_path / "slots", ignore_errors=True)
        expected = {"installed", "v3"}
        if turn == "roll_back":
            update(opened(), 3)
        elif turn != "first start":
            opened()
        if turn == "reinstall":
            shutil.rmtree(seed)
            named(seed, f"by hand {survived}")
            expected = {"installed", f"by hand {survived}"}
        slots = None if turn in ("first start", "reinstall") else opened()
        left = survived

        def dying(call):
            def guarded(*arguments, **options):
                nonlocal left
                left -= 1
                if left < 0:
                    raise Killed
                return call(*arguments, **options)

            return guarded

        with monkeypatch.context() as patched:
            patched.setattr(module, "_sync", dying(module._sync))
            patched.setattr(module.shutil, "rmtree", dying(shutil.rmtree))
            patched.setattr(module.shutil, "copytree", dying(shutil.copytree))
            patched.setattr(module.Path, "rename", dying(module.Path.rename))
            patched.setattr(module.Path, "symlink_to", dying(module.Path.symlink_to))
            try:
                if slots is None:
                    opened()
                elif turn == "switch":
                    update(slots, 3)
                else:
                    slots.roll_back("no answer")
            except Killed:
                killed += 1
            else:
                break
        after = opened()
        assert name_of(after) in expected
        assert load_bundle(tmp_path / "slots" / "current").name == name_of(after)
    else:
        raise AssertionError("more writes than were expected; the last ones were not tried")
    assert killed >= 3
    assert json.loads((tmp_path / "slots" / "state.json").read_text())["slot"] in "ab"
