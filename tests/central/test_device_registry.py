"""What devices say of themselves reaches the disk; what is hostile or played again does not."""

import json
import threading
from contextlib import closing
from dataclasses import replace

import pytest
from fake_decoder import MODEL_HASH, latent_record
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from waiting import wait_until

from central.fleet import device_registry as device_book
from central.fleet.device_registry import DeviceRegistry, forget_device
from central.fleet.device_views import ON_TIME, SILENT, devices
from central.fleet.gaps import GapWatch
from central.fleet.rates import ALL, keep_rate
from central.ingest.traffic import MAX_DEVICES, Traffic
from central.storage.database import StoreError, connect
from central.storage.journal import Journal
from firmware_py.protocol import packet
from firmware_py.protocol.health_messages import (
    Health,
    Hello,
    decode_newest_boot,
    decode_ranges,
    decode_setting,
    encode_health,
)
from firmware_py.runtime.log import Log, now_us

HEALTHY = Health(30, 100, waiting=4, dropped=2, refused=0, next_sequence=9, temperature_mc=41_000)


def said(message=HEALTHY, device=3, boot=1, sequence=1, payload=None):
    kind = packet.HELLO if isinstance(message, Hello) else packet.HEALTH
    payload = encode_health(message) if payload is None else payload
    return packet.Record(kind, device, 1, boot, sequence, model_hash=MODEL_HASH, payload=payload)


class Book:
    """A book whose ``offers`` are on offer, and the file it writes to."""

    def __init__(self, data_dir):
        self.data_dir = data_dir
        self.offer = None
        self.asked = []
        self.log_path = data_dir / "log.jsonl"
        self.open()

    def open(self):
        """As after a restart of the centre."""
        self.book = DeviceRegistry(self.data_dir, self._offered, Log(self.log_path))
        self.traffic = self.book.traffic

    def _offered(self, record):
        self.asked.append(record.device)
        return self.offer

    def hear(self, record):
        return list(self.book.handle(record, 100))

    def take_up_rates(self):
        with closing(connect(self.data_dir)) as database:
            self.book.take_up_rates(database)

    def keep(self):
        with closing(connect(self.data_dir)) as database:
            self.book.keep(database)
        return {view.device: view for view in devices(self.data_dir)}


@pytest.fixture
def book(data_dir):
    return Book(data_dir)


def test_the_answer_is_the_centres_clock(book):
    before_us = now_us()
    (answer,) = book.hear(said(sequence=7, boot=5))
    assert (answer.type, answer.device, answer.survey, answer.boot, answer.sequence) == (
        packet.HEALTH,
        3,
        1,
        5,
        7,
    )
    assert before_us <= answer.sample_time_us <= now_us()
    assert decode_setting(answer.payload) == 0, "its rate is left to the device"


def test_a_rate_that_is_set_is_answered_and_outlives_the_centre(book):
    def answered(device, sequence):
        (answer,) = book.hear(said(device=device, sequence=sequence))
        return decode_setting(answer.payload)

    keep_rate(book.data_dir, ALL, 64)
    keep_rate(book.data_dir, (1, 3), 32)
    assert answered(3, 1) == 0, "not looked at yet"
    book.take_up_rates()
    assert (answered(3, 2), answered(4, 1)) == (32, 64)
    book.open()
    assert (answered(3, 3), answered(4, 2)) == (32, 64)
    keep_rate(book.data_dir, (1, 3), None)
    book.take_up_rates()
    assert answered(3, 4) == 64, "that for all, where it has none of its own"
    keep_rate(book.data_dir, (1, 3), 32)
    keep_rate(book.data_dir, ALL, 16)
    book.take_up_rates()
    assert answered(3, 5) == 16, "what is set for all takes the place of every one before"
    keep_rate(book.data_dir, ALL, None)
    book.take_up_rates()
    assert answered(3, 6) == 0


def test_what_a_device_makes_and_what_it_is_set_to_stand_beside_each_other(book):
    book.hear(said(replace(HEALTHY, latent_bytes=128)))
    keep_rate(book.data_dir, (1, 3), 32)
    view = book.keep()[3]
    assert (view.latent_bytes, view.set_bytes) == (128, 32)


def test_hello_and_health_come_together(book):
    book.hear(said(Hello("0.1.0", "a board", 30, 10_000, 4, update_version=7)))
    book.hear(said(sequence=2))
    view = book.keep()[3]
    assert (view.firmware, view.board, view.interval_s) == ("0.1.0", "a board", 30)
    assert (view.queue_depth, view.dropped, view.temperature_c) == (4, 2, 41.0)
    assert view.model_hash == MODEL_HASH.hex()


def test_what_a_device_says_no_more_is_known_no_more(book):
    book.hear(said())
    assert book.keep()[3].temperature_c == 41.0
    book.hear(said(Health(30, 160, 0, 2, 0, 9), sequence=2))
    view = book.keep()[3]
    assert (view.temperature_c, view.queue_depth) == (None, 0)


@pytest.mark.parametrize(("boot", "sequence"), [(5, 7), (5, 6), (4, 90)])
def test_what_is_played_again_changes_nothing_even_after_a_restart(book, boot, sequence):
    book.hear(said(boot=5, sequence=7))
    seen_us = book.keep()[3].last_seen_us
    for _ in range(2):
        answers = book.hear(said(Health(30, 1, 999, 0, 0, 1), boot=boot, sequence=sequence))
        assert len(answers) == (boot < 5), "a boot that is behind may be a device without its state"
        assert book.keep()[3].queue_depth == 4
        assert book.keep()[3].last_seen_us == seen_us
        book.open()
    assert book.hear(said(boot=6, sequence=1))


def test_the_hello_of_a_boot_that_is_behind_is_told_the_newest_and_changes_nothing(book):
    """As of a device that was re-imaged and began at 1970."""
    keep_rate(book.data_dir, ALL, 64)
    book.take_up_rates()
    book.hear(said(boot=1_700_000_000, sequence=7))
    seen_us = book.keep()[3].last_seen_us
    book.open()
    for sequence in (1, 2):
        (answer,) = book.hear(said(Hello("0.1.0", "a board", 30, 10, 999), boot=30, sequence=sequence))
        assert (answer.type, answer.boot, answer.sequence) == (packet.HELLO, 30, sequence)
        assert (decode_newest_boot(answer.payload), decode_setting(answer.payload)) == (1_700_000_000, 64)
        assert answer.sample_time_us > 0
    view = book.keep()[3]
    assert (view.queue_depth, view.last_seen_us) == (4, seen_us)
    (line,) = [row for row in map(json.loads, book.log_path.read_text().splitlines()) if "last_boot" in row]
    assert (line["device"], line["boot"], line["last_boot"]) == (3, 30, 1_700_000_000)
    (answer,) = book.hear(said(Hello("0.1.0", "a board", 30, 10, 0), boot=1_700_000_001))
    assert decode_newest_boot(answer.payload) == 0


def test_an_update_is_offered_to_who_takes_updates_and_is_not_at_one(book):
    book.offer = packet.Record(packet.UPDATE, 3, 1, 1, 1)
    assert len(book.hear(said(sequence=1))) == 1, "it has no place for updates, and none among the canaries"
    for number, state in enumerate(("downloading", "trial"), 2):
        assert (
            len(
                book.hear(
                    said(Health(30, 1, 0, 0, 0, 1, update_version=1, update_state=state), sequence=number)
                )
            )
            == 1
        )
    assert book.asked == []
    idle = Health(30, 1, 0, 0, 0, 1, update_version=1, update_state="idle")
    assert book.hear(said(idle, sequence=8))[1] == book.offer
    assert book.hear(said(Hello("0", "b", 30, 1, 0, update_version=1), sequence=9))[1] == book.offer


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=80))
def test_a_hostile_payload_is_no_news(book, payload):
    record = said(payload=payload)
    for kind in (packet.HELLO, packet.HEALTH):
        record.type = kind
        book.hear(record)
    assert all(view.records == 0 for view in book.keep().values())


def test_a_hostile_payload_is_logged_and_not_answered(book):
    assert book.hear(said(payload=b"\x9b\x7f" + b"\xff" * 7)) == []
    assert book.keep() == {}
    (line,) = map(json.loads, book.log_path.read_text().splitlines())
    assert (line["message"], line["device"]) == ("damaged", 3)


def test_traffic_adds_up_over_looks(book):
    for _ in range(2):
        book.traffic.received((1, 3), 100)
        book.traffic.sent((1, 3), 40)
        book.traffic.refused((1, 3), "first", 4_000_000)
        book.traffic.refused((1, 3), "why", 5_000_000)
        view = book.keep()[3]
    assert (view.bytes_received, view.bytes_sent, view.refused, view.refusal) == (200, 80, 4, "why")
    assert view.last_seen_us == 5_000_000
    book.traffic.received((1, 3), 1)
    assert book.keep()[3].refusal == "why"


def test_what_the_disk_did_not_take_is_kept_the_next_time(book, data_dir):
    with closing(connect(data_dir)) as database:
        database.execute("CREATE TRIGGER full BEFORE INSERT ON device BEGIN SELECT RAISE(ABORT, 'full'); END")
        book.traffic.received((1, 3), 100)
        book.hear(said())
        with pytest.raises(StoreError):
            book.keep()
        book.traffic.received((1, 3), 100)
        book.hear(said(Hello("0.1.0", "a board", 30, 1, 0), sequence=2))
        database.execute("DROP TRIGGER full")
    view = book.keep()[3]
    assert view.bytes_received == 200
    assert (view.temperature_c, view.board) == (41.0, "a board")


def test_devices_that_were_made_up_do_not_fill_the_memory():
    traffic = Traffic()
    for device in range(MAX_DEVICES + 100):
        traffic.received((0, device), 10)
    assert len(traffic.take()) == MAX_DEVICES


def test_watching_keeps_what_comes_and_what_came_last(book, monkeypatch):
    monkeypatch.setattr(device_book, "POLL_S", 0.05)
    stopping = threading.Event()
    thread = threading.Thread(target=book.book.watch, args=(stopping,))
    thread.start()
    book.traffic.received((1, 3), 100)
    wait_until(lambda: devices(book.data_dir), what="the first look")
    monkeypatch.setattr(device_book, "POLL_S", 60)
    book.traffic.received((1, 4), 100)
    stopping.set()
    thread.join()
    assert [view.device for view in devices(book.data_dir)] == [3, 4]


def test_a_boot_that_is_behind_is_answered_and_logged_once_and_changes_nothing(book):
    """A device whose state was lost; or its record of last year, played again."""
    book.hear(said(boot=9))
    book.keep()
    for sequence in (1, 2):
        (answer,) = book.hear(said(replace(HEALTHY, waiting=99), boot=4, sequence=sequence))
        assert (answer.boot, answer.sequence) == (4, sequence) and answer.sample_time_us
    assert book.keep()[3].queue_depth == 4
    lines = list(map(json.loads, book.log_path.read_text().splitlines()))
    (line,) = [line for line in lines if line["message"] == "boot_behind"]
    assert (line["boot"], line["last_boot"]) == (4, 9)
    assert "epic central devices forget 3 --survey 1" in line["advice"]


def test_a_device_that_is_forgotten_is_new_to_a_centre_at_work(book):
    book.hear(said(boot=9))
    book.keep()
    assert forget_device(book.data_dir, (1, 3))
    assert devices(book.data_dir) == []
    with closing(connect(book.data_dir)) as database:
        book.book.take_up_forgotten(database)
    assert book.hear(said(boot=4))
    assert book.keep()[3].queue_depth == 4
    book.open()
    assert book.hear(said(boot=4, sequence=2)), "and stays known after a restart"
    assert not forget_device(book.data_dir, (1, 4))


def test_acknowledged_records_that_the_store_lost_are_told(book):
    """A write-ahead log that was removed, or an older backup."""
    with closing(Journal(book.data_dir)) as journal:
        journal.commit([(latent_record(device=3, boot=2, sequence=n), 1, 60) for n in (1, 2)])
    book.hear(said(replace(HEALTHY, acknowledged_boot=2, acknowledged_sequence=2), boot=2))
    assert book.keep()[3].acknowledged_lost == 0
    book.hear(said(replace(HEALTHY, acknowledged_boot=2, acknowledged_sequence=7), boot=2, sequence=2))
    assert book.keep()[3].acknowledged_lost == 5
    lines = list(map(json.loads, book.log_path.read_text().splitlines()))
    assert [line["records"] for line in lines if line["message"] == "acknowledged_lost"] == [5]
    with closing(Journal(book.data_dir)) as journal:
        journal.commit([(latent_record(device=3, boot=2, sequence=7), 1, 60)])
    assert book.keep()[3].acknowledged_lost == 0, "what is missing below is a gap"


def asked(book, number, **status):
    """The ranges that the centre asks for in its answer to a health."""
    (answer,) = book.hear(said(replace(HEALTHY, **status), boot=9, sequence=number))
    book.keep()
    return decode_ranges(answer.payload)


def test_records_that_the_store_lost_are_asked_for_until_the_device_has_dealt_with_it(book):
    with closing(Journal(book.data_dir)) as journal:
        journal.commit([(latent_record(device=3, boot=2, sequence=n), 1, 60) for n in (1, 2)])
    lost = {"acknowledged_boot": 2, "acknowledged_sequence": 7}
    assert asked(book, 1, **lost, resent=0, not_kept=0) == [], "not compared yet"
    for number in (2, 3):
        assert asked(book, number, **lost, resent=0, not_kept=0) == [(2, 3, 7)], "the answer may be lost"
    assert asked(book, 4, **lost, resent=3, not_kept=2) == []
    assert asked(book, 5, **lost, resent=3, not_kept=2) == [], "what it has no more is left alone"
    view = book.keep()[3]
    assert (view.resent, view.not_kept) == (3, 2)
    lines = list(map(json.loads, book.log_path.read_text().splitlines()))
    assert [line["records"] for line in lines if line["message"] == "asked_again"] == [5]
    (done,) = [line for line in lines if line["message"] == "sent_again"]
    assert (done["device"], done["resent"], done["not_kept"]) == (3, 3, 2)


def test_gaps_before_what_still_waits_are_asked_for_too(book):
    with closing(connect(book.data_dir)) as database:
        for first, last in ((3, 4), (8, 9)):
            database.execute("INSERT INTO gap VALUES (1, 3, 2, ?, ?, ?)", (first, last, last - first + 1))
    with closing(Journal(book.data_dir)) as journal:
        journal.commit([(latent_record(device=3, boot=2, sequence=10), 1, 60)])
    status = {"acknowledged_boot": 2, "acknowledged_sequence": 10, "first_boot": 2, "first_sequence": 9}
    asked(book, 1, **status, resent=0, not_kept=0)
    assert asked(book, 2, **status, resent=0, not_kept=0) == [(2, 3, 4)], "8 and 9 come by themselves"


def test_a_forgotten_device_that_goes_on_has_lost_nothing(book):
    def receive(*sequences):
        records = [latent_record(device=3, boot=2, sequence=n, event=n) for n in sequences]
        with closing(Journal(book.data_dir)) as journal:
            return len(journal.commit([(record, 1, 60) for record in records]).new)

    receive(1, 2, 4, 5)
    with closing(connect(book.data_dir)) as database:
        GapWatch(Log(book.log_path)).look(database, now_us())
    status = {"acknowledged_boot": 2, "acknowledged_sequence": 5, "resent": 0, "not_kept": 0}
    asked(book, 1, **status)
    assert forget_device(book.data_dir, (1, 3))
    assert devices(book.data_dir) == []
    assert not forget_device(book.data_dir, (1, 3))
    with closing(connect(book.data_dir)) as database:
        book.book.take_up_forgotten(database)
    asked(book, 2, **status)
    assert (book.keep()[3].records, book.keep()[3].acknowledged_lost, book.keep()[3].loss) == (0, 0, 0)
    assert asked(book, 3, **status) == [(2, 3, 3)], "only the gap"
    assert receive(3, 6) == 2
    with closing(connect(book.data_dir)) as database:
        GapWatch(Log(book.log_path)).look(database, now_us())
    assert (book.keep()[3].records, book.keep()[3].sequence, book.keep()[3].loss) == (2, 6, 0)


def test_a_device_that_keeps_nothing_and_one_that_lies_are_asked_for_nothing(book):
    with closing(Journal(book.data_dir)) as journal:
        journal.commit([(latent_record(device=3, boot=2, sequence=1), 1, 60)])
    number = 0
    for status in (
        {"acknowledged_boot": 2, "acknowledged_sequence": 7},
        {"acknowledged_boot": 2, "acknowledged_sequence": 1 << 40, "resent": 0},
        {"acknowledged_boot": 1 << 40, "acknowledged_sequence": 7, "resent": 0},
    ):
        for _ in range(3):
            number += 1
            assert asked(book, number, **status) == []


def test_a_clock_that_was_ahead_once_does_not_keep_a_silent_device_on_time(book):
    ahead_us = now_us() + 86_400_000_000
    book.traffic.seen([(1, 3)], ahead_us)
    assert book.keep()[3].state == SILENT
    book.traffic.seen([(1, 3)], now_us())
    assert book.keep()[3].state == ON_TIME
    ((view),) = devices(book.data_dir, at_us=now_us() + 3_600_000_000)
    assert view.state == SILENT


def test_a_status_that_is_damaged_is_empty_and_is_written_anew(book):
    book.hear(said())
    book.keep()
    with closing(connect(book.data_dir)) as database:
        database.execute("UPDATE device SET status = '{\"waiting\": 4'")
    assert devices(book.data_dir)[0].queue_depth is None
    book.open()
    book.hear(said(sequence=2))
    assert book.keep()[3].queue_depth == 4
