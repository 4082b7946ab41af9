"""The count that chaos runs end with finds what it is there to find."""

import copy

import pytest
from chaos_tally import Tally, tally
from chaos_world import tiny_world

from central.storage.journal import Journal
from firmware_py.protocol import packet

EVENTS = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def records(world):
    """Every device's records as they should arrive."""
    latents = world.latents()
    return [
        packet.Record(packet.LATENT, device, 1, 7, event, event, 0, bytes(8), latents[device][event - 1])
        for device in range(world.n_devices)
        for event in range(1, EVENTS + 1)
    ]


def changed(record, **fields):
    other = copy.copy(record)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def logs(world, extra=()):
    rows = [{"message": "started", "boot": 7}]
    rows += [{"message": "recorded", "sequence": e, "event": e} for e in range(1, EVENTS + 1)]
    return [[*rows, *extra] for _ in range(world.n_devices)]


def found(world, folder, records, logs) -> Tally:
    journal = Journal(folder)
    journal.commit([(record, 0, 0) for record in records])
    journal.close()
    return tally(world, logs, folder, EVENTS)


def test_all_is_well(world, records, tmp_path):
    assert found(world, tmp_path, records, logs(world)) == Tally(15, 0, 0, 0, 0, 0)


def test_a_record_that_did_not_arrive_is_lost(world, records, tmp_path):
    assert found(world, tmp_path, records[1:], logs(world)) == Tally(14, 1, 0, 0, 0, 0)


def test_an_event_recorded_and_kept_twice_is_duplicated(world, records, tmp_path):
    again = changed(records[0], boot=8)
    assert found(world, tmp_path, [*records, again], logs(world)) == Tally(16, 0, 1, 0, 0, 0)


def test_another_latent_or_event_is_corrupted(world, records, tmp_path):
    wrong = changed(records[0], payload=bytes(len(records[0].payload)))
    nowhere = changed(records[1], sequence=9, event=99)
    assert found(world, tmp_path, [wrong, *records[1:], nowhere], logs(world)) == Tally(16, 0, 0, 2, 0, 0)


def test_a_number_given_twice_is_reused_and_what_it_hid_is_lost(world, records, tmp_path):
    twice = [{"message": "recorded", "sequence": EVENTS, "event": 99}]
    assert found(world, tmp_path, records, logs(world, twice)) == Tally(15, 5, 0, 0, 5, 0)
