"""The assembler: one emission for what is known, another for what comes later."""

from dataclasses import replace

import pytest
from fake_decoder import MODEL_HASH, OTHER_HASH
from hypothesis import given
from hypothesis import strategies as st

from central.pipeline.assembler import Assembler
from central.storage.journal import JournalEntry

N = 5
DEADLINE_S = 10.0


def latent(id, device, event=1, boot=1, sequence=None, survey=1, model_hash=MODEL_HASH):
    order = (boot, id if sequence is None else sequence)
    return JournalEntry(id, survey, event, model_hash, device, *order, 0, 0, 56, bytes([device]))


def feed(assembler, devices, now_s=0.0, first_id=1):
    """Add one latent of each device; returns the events emitted at once."""
    added = (assembler.add(latent(first_id + i, d), N, now_s) for i, d in enumerate(devices))
    return [event for event in added if event]


@given(st.sets(st.integers(0, N - 1), min_size=1).flatmap(lambda s: st.permutations(sorted(s))))
def test_any_devices_in_any_order_make_exactly_one_event(devices):
    assembler = Assembler(DEADLINE_S)
    at_once = feed(assembler, devices)
    at_deadline = assembler.due(DEADLINE_S)
    (event,) = at_once + at_deadline
    assert bool(at_once) == event.complete == (len(devices) == N)
    assert sorted(event.latents) == sorted(devices)
    assert all(event.latents[d].device == d for d in devices)
    assert event.last_record == len(devices)
    assert assembler.due(1000.0) == []


@given(st.permutations(range(N)), st.integers(1, N - 1))
def test_a_late_latent_causes_another_emission(devices, split):
    assembler = Assembler(DEADLINE_S)
    feed(assembler, devices[:split])
    (partial,) = assembler.due(DEADLINE_S)
    assert not partial.complete
    at_once = feed(assembler, devices[split:], now_s=11.0, first_id=split + 1)
    assert len(at_once) == 1
    assert at_once[0].complete
    assert at_once[0].last_record == N


def test_a_late_latent_that_leaves_the_event_incomplete_waits_a_deadline_of_its_own():
    assembler = Assembler(DEADLINE_S)
    feed(assembler, [0, 1])
    assembler.due(DEADLINE_S)
    assembler.add(latent(3, 2), N, 15.0)
    assert assembler.next_due_s() == 25.0
    assert assembler.due(24.9) == []
    (event,) = assembler.due(25.0)
    assert sorted(event.latents) == [0, 1, 2]


@given(st.permutations([(1, 8), (1, 9), (2, 1), (2, 2)]))
def test_the_newest_of_a_device_wins_in_whatever_order_the_link_delivers(orders):
    assembler = Assembler(DEADLINE_S)
    for id, (boot, sequence) in enumerate(orders, start=1):
        assembler.add(latent(id, 0, boot=boot, sequence=sequence), N, 0.0)
    (event,) = assembler.due(DEADLINE_S)
    assert event.latents[0].order == (2, 2)
    assert event.replaced == 3


def test_an_older_latent_that_comes_late_changes_no_map():
    assembler = Assembler(DEADLINE_S)
    assembler.add(latent(1, 0, sequence=9), N, 0.0)
    assert len(assembler.due(DEADLINE_S)) == 1
    assert assembler.add(latent(2, 0, sequence=8), N, 11.0) is None
    assert assembler.next_due_s() is None
    assert assembler.due(1000.0) == []


def test_the_same_latent_twice_is_one():
    assembler = Assembler(DEADLINE_S)
    (event,) = feed(assembler, range(N))
    assert feed(assembler, range(N)) == []
    assert assembler.due(1000.0) == []
    assert event.replaced == 0


@given(
    st.permutations(
        [(s, e, h, d) for s in (1, 2) for e in (1, 2) for h in (MODEL_HASH, OTHER_HASH) for d in range(N)]
    )
)
def test_surveys_events_and_models_never_mix(arrivals):
    assembler = Assembler(DEADLINE_S)
    emitted = []
    for id, (survey, event, model_hash, device) in enumerate(arrivals, start=1):
        done = assembler.add(latent(id, device, event, survey=survey, model_hash=model_hash), N, 0.0)
        if done:
            assert {held.key for held in done.latents.values()} == {done.key}
            emitted.append(done.key)
    assert len(emitted) == len(set(emitted)) == 8
    assert assembler.due(1000.0) == []


def test_next_due_is_that_of_the_oldest_waiting_event():
    assembler = Assembler(DEADLINE_S)
    assert assembler.next_due_s() is None
    assembler.add(latent(1, 0, event=1), N, 0.0)
    assembler.add(latent(2, 0, event=2), N, 3.0)
    assembler.add(latent(3, 1, event=1), N, 5.0)
    assert assembler.next_due_s() == 10.0
    assert [event.key[1] for event in assembler.due(10.0)] == [1]
    assert assembler.next_due_s() == 13.0


@pytest.mark.parametrize("emitted_through", [0, 2])
def test_a_restored_event_goes_on_where_it_was(emitted_through):
    assembler = Assembler(DEADLINE_S)
    assembler.restore([latent(1, 0), latent(2, 1)], N, emitted_through, now_s=100.0)
    assert assembler.knows((1, 1, MODEL_HASH))
    due = assembler.due(110.0)
    assert len(due) == (emitted_through == 0)
    (complete,) = feed(assembler, [2, 3, 4], now_s=111.0, first_id=3)
    assert sorted(complete.latents) == [0, 1, 2, 3, 4]


def test_an_emission_that_came_to_nothing_is_made_again_after_a_deadline():
    assembler = Assembler(DEADLINE_S)
    (event,) = feed(assembler, range(N))
    assembler.retry(event, now_s=2.0)
    assert assembler.due(11.9) == []
    assert assembler.due(12.0) == [event]
    assert assembler.due(1000.0) == []


def test_a_failed_emission_takes_no_later_latent_back():
    """A worker drew the event from four devices and from all five, and died over both."""
    assembler = Assembler(DEADLINE_S)
    feed(assembler, range(N - 1))
    (event,) = assembler.due(DEADLINE_S)
    partial = replace(event, latents=dict(event.latents))
    (event,) = feed(assembler, [N - 1], now_s=11.0, first_id=N)
    complete = replace(event, latents=dict(event.latents))
    for lost in (partial, complete):
        assembler.retry(lost, now_s=12.0)
    (again,) = assembler.due(100.0)
    assert (sorted(again.latents), again.last_record) == (list(range(N)), N)


def test_a_failed_emission_of_more_than_is_held_takes_the_place_of_that_in_its_turn():
    assembler = Assembler(DEADLINE_S)
    (complete,) = feed(assembler, range(N))
    assembler.due(1000.0)
    assembler.restore([latent(1, 0)], N, 0, now_s=1000.0)
    assembler.retry(complete, now_s=1005.0)
    assert assembler.next_due_s() == 1010.0
    assert assembler.due(1010.0) == [complete]


def test_no_more_than_so_many_are_held_and_those_that_wait_too_many_have_their_turn_early():
    assembler = Assembler(DEADLINE_S, most=3)
    feed(assembler, range(N))
    for event in (2, 3):
        assembler.add(latent(N + event, 0, event=event), N, 1.0)
    assembler.due(2.0)
    assert (len(assembler), assembler.full) == (3, False)
    assembler.add(latent(N + 4, 0, event=4), N, 2.0)
    assert assembler.full and assembler.next_due_s() < 2.0
    assert [event.key[1] for event in assembler.due(2.0, 2)] == [2, 3]
    assert len(assembler) == 3 and not assembler.full
    assert not assembler.knows((1, 1, MODEL_HASH)), "emitted, so in the journal and drawn"
    assert [event.key[1] for event in assembler.due(100.0)] == [4]


def test_of_many_that_are_due_so_many_are_emitted_as_asked_for():
    assembler = Assembler(DEADLINE_S)
    for event in (1, 2, 3):
        assembler.add(latent(event, 0, event=event), N, 0.0)
    assert [event.key[1] for event in assembler.due(DEADLINE_S, most=2)] == [1, 2]
    assert assembler.next_due_s() == DEADLINE_S
    assert [event.key[1] for event in assembler.due(DEADLINE_S, most=2)] == [3]


def test_emitted_events_are_forgotten_and_waiting_ones_are_not():
    assembler = Assembler(DEADLINE_S)
    feed(assembler, range(N))
    assembler.add(latent(6, 0, event=2), N, 19.0)
    assembler.due(19.9)
    assert len(assembler) == 2
    assembler.due(20.1)
    assert not assembler.knows((1, 1, MODEL_HASH))
    assert assembler.knows((1, 2, MODEL_HASH))
