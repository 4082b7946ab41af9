"""Numbers that never came: told once, and told again when they have."""

import json
from contextlib import closing

import pytest
from fake_decoder import latent_record
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from central.fleet.device_views import Gap, devices
from central.fleet.gaps import GAP_AFTER_S, LINES_A_MINUTE, MAX_GAPS, GapWatch, cut_from_gap
from central.storage.database import StoreError, connect, transaction
from central.storage.journal import Journal
from firmware_py.runtime.log import Log

LATER_US = int(GAP_AFTER_S * 1e6)


class Field:
    """A journal at ``at_us``, and the watch over it."""

    def __init__(self, data_dir):
        self.data_dir = data_dir
        self.at_us = 1_000_000_000_000
        self.log_path = data_dir / "log.jsonl"
        self.restart()

    def restart(self):
        self.watch = GapWatch(Log(self.log_path))

    def receive(self, *sequences, boot=7, device=2):
        """Commit records and return the numbers of the new ones."""
        records = [latent_record(device=device, boot=boot, sequence=s, event=s) for s in sequences]
        with closing(Journal(self.data_dir)) as journal:
            committed = journal.commit([(record, self.at_us, 60) for record in records])
        assert not committed.conflicts
        return [entry.sequence for entry in committed.new]

    def delete(self, *sequences, boot=7, device=2):
        """Delete records as retention does."""
        with closing(connect(self.data_dir)) as database, transaction(database, "delete"):
            for sequence in sequences:
                cut_from_gap(database, (1, device, boot), sequence)
                database.execute("DELETE FROM record WHERE boot = ? AND sequence = ?", (boot, sequence))

    def last(self):
        with closing(connect(self.data_dir)) as database:
            return database.execute("SELECT sequence FROM record ORDER BY id DESC LIMIT 1").fetchone()[0]

    def scanned(self):
        with closing(connect(self.data_dir)) as database:
            return database.execute("SELECT scanned FROM device_boot").fetchone()[0]

    def look(self, later_us=LATER_US):
        """What is told when so much time has passed: (what, boot, first, last)."""
        self.at_us += later_us
        before = self.log_path.read_text().count("\n")
        with closing(connect(self.data_dir)) as database:
            self.watch.look(database, self.at_us)
        lines = list(map(json.loads, self.log_path.read_text().splitlines()[before:]))
        return [
            (line["message"], line["boot"], line["first"], line["last"]) for line in lines if "boot" in line
        ]

    def view(self):
        (view,) = devices(self.data_dir)
        return view


@pytest.fixture
def field(data_dir):
    return Field(data_dir)


def test_a_gap_is_told_once_and_once_more_when_it_is_filled(field):
    field.receive(1, 2, 6, 7)
    assert field.look() == [("gap", 7, 3, 5)]
    assert field.look() == []
    assert (field.view().loss, field.view().gaps) == (3, (Gap(7, 3, 5, 3),))
    field.receive(4)
    assert field.look() == []
    assert field.view().gaps == (Gap(7, 3, 5, 2),)
    field.receive(3, 5)
    assert field.look() == [("gap_filled", 7, 3, 5)]
    assert (field.view().loss, field.view().gaps) == (0, ())


def test_what_is_only_out_of_order_is_no_gap(field):
    field.receive(1, 4)
    assert field.look(LATER_US - 1) == []
    field.receive(2, 3)
    assert field.look() == []
    assert field.view().loss == 0


def test_numbers_begin_at_one_in_every_boot(field):
    field.receive(3, boot=7)
    field.receive(1, 3, boot=8)
    assert field.look() == [("gap", 7, 1, 2), ("gap", 8, 2, 2)]
    assert field.view().loss == 3


def test_a_restart_of_the_centre_tells_nothing_twice_and_forgets_no_gap(field):
    field.receive(1, 3, 4)
    assert field.look() == [("gap", 7, 2, 2)]
    field.restart()
    assert field.look() == []
    field.receive(2, 6)
    field.restart()
    assert sorted(field.look()) == [("gap", 7, 5, 5), ("gap_filled", 7, 2, 2)]


def test_holes_without_end_do_not_fill_the_table_and_are_all_counted(field):
    n = 3 * MAX_GAPS
    field.receive(*range(2, 2 * n + 1, 2))
    assert len(field.look()) == LINES_A_MINUTE
    assert (field.view().loss, len(field.view().gaps)) == (n, MAX_GAPS)
    field.receive(*range(2 * n + 2, 2 * n + 11, 2))
    field.look()
    assert (field.view().loss, len(field.view().gaps)) == (n + 5, MAX_GAPS)
    field.receive(*range(1, 2 * n + 11, 2))
    field.look()
    assert (field.view().loss, field.view().gaps) == (0, ())


def test_numbers_are_known_after_their_records_were_deleted(field):
    assert field.receive(*range(1, 11)) == [*range(1, 11)]
    assert field.look(0) == []
    field.delete(*range(1, 9))
    field.restart()
    field.receive(12)
    assert field.look() == [("gap", 7, 11, 11)], "not 1 to 8"
    assert field.receive(*range(1, 12)) == [11]
    assert field.look() == [("gap_filled", 7, 11, 11)]
    field.receive(15)
    assert field.look() == [("gap", 7, 13, 14)]
    view = field.view()
    assert (view.records, view.sequence, view.loss) == (13, 15, 2)


def test_a_gap_is_filled_whatever_was_deleted_within_it(field):
    field.receive(1, 2, 8)
    field.look()
    field.receive(4, 5)
    field.look()
    field.delete(1, 4)
    assert field.view().gaps == (Gap(7, 3, 3, 1), Gap(7, 5, 7, 2))
    assert field.receive(3, 4, 5, 6) == [3, 6]
    assert field.look() == [("gap_filled", 7, 3, 3)]
    field.delete(3, 5)
    assert field.view().gaps == (Gap(7, 6, 7, 1),)
    assert field.receive(*range(1, 9)) == [7]
    assert field.look() == [("gap_filled", 7, 6, 7)]


def test_deletions_never_raise_the_loss_of_merged_gaps(field):
    n = 2 * MAX_GAPS
    field.receive(*range(2, 2 * n + 1, 2))
    field.look()
    field.delete(*range(2, n + 1, 2))
    field.receive(2 * n + 1, n + 1)
    field.look()
    assert field.view().loss == n
    field.receive(2 * n + 3)
    field.look()
    assert (field.view().loss, len(field.view().gaps)) == (n + 1, MAX_GAPS)
    assert field.view().gaps[-1] == Gap(7, 2 * n + 2, 2 * n + 2, 1), "the newest gaps are exact"
    assert field.receive(2 * n + 2) == [2 * n + 2]
    field.look()
    assert field.view().loss == n


def test_a_store_from_before_numbers_were_remembered_reports_no_deleted_record(field):
    field.receive(*range(1, 11))
    field.delete(*range(1, 9))
    assert field.scanned() == 0
    assert field.look() == []
    field.receive(12)
    assert field.look() == [("gap", 7, 11, 11)]
    assert field.receive(*range(1, 12)) == [11]


def test_a_gap_that_cannot_be_written_is_found_at_the_next_look(field):
    field.receive(1, 3)
    with closing(connect(field.data_dir)) as database:
        database.execute("CREATE TRIGGER full BEFORE INSERT ON gap BEGIN SELECT RAISE(ABORT, 'full'); END")
        with pytest.raises(StoreError):
            field.look()
        assert field.scanned() == 0
        database.execute("DROP TRIGGER full")
    assert field.look() == [("gap", 7, 2, 2)]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=12), min_size=1, max_size=4), st.data())
def test_each_number_is_new_once_whatever_was_deleted(tmp_path_factory, groups, data):
    data_dir = tmp_path_factory.mktemp("gaps") / "data"
    Journal(data_dir).close()
    field = Field(data_dir)
    had, kept = set(), set()
    for group in groups:
        new = set(group) - had
        assert set(field.receive(*group)) == new
        had, kept = had | new, kept | new
        field.look(data.draw(st.sampled_from([0, LATER_US])))
        # The last record stays, so that its id is not used twice.
        deleted = {n for n in kept - {field.last()} if n <= field.scanned() and data.draw(st.booleans())}
        field.delete(*sorted(deleted))
        kept -= deleted
    field.look()
    assert field.view().loss == len(set(range(1, max(had))) - had)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=12), min_size=1, max_size=6), st.data())
def test_loss_is_what_is_missing_below_the_highest(tmp_path_factory, groups, data):
    data_dir = tmp_path_factory.mktemp("gaps") / "data"
    Journal(data_dir).close()
    field = Field(data_dir)
    had = set()
    for group in groups:
        field.receive(*group)
        had |= set(group)
        if data.draw(st.booleans()):
            field.restart()
        field.look()
        missing = set(range(1, max(had))) - had
        assert field.view().loss == len(missing)
        told = {n for gap in field.view().gaps for n in range(gap.first, gap.last + 1)}
        assert missing <= told


def test_boots_that_are_over_cost_nothing_and_a_line_each_is_not_written(field, monkeypatch):
    """A device that starts anew all the time and loses a record each time."""
    for boot in range(1, 41):
        field.receive(1, 3, boot=boot)
    told = field.look()
    assert [line[:2] for line in told] == [("gap", boot) for boot in range(1, LINES_A_MINUTE + 1)]
    asked = []
    with closing(connect(field.data_dir)) as database:
        database.set_trace_callback(asked.append)
        field.watch.look(database, field.at_us + 1)
    assert len(asked) == 2, "one question whether anything has changed, one for what"
    field.receive(2, boot=40)
    assert field.look(60_000_000)[-1] == ("gap_filled", 40, 2, 2)
    assert '"gaps_unlisted", "timestamp_us"' in field.log_path.read_text()
    assert field.view().loss == 39
