"""Whatever a device says is shown as text: on a terminal, on the page, in metrics and in the log."""

import dataclasses
import json
import unicodedata
from contextlib import closing

import pytest
from fake_decoder import MODEL_HASH
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import epic
from central.dashboard.feed import brief, rollout_dict
from central.dashboard.metrics import metrics_text
from central.doctor import FAIL, OK, WARN, Finding
from central.fleet.device_registry import DeviceRegistry
from central.fleet.device_views import devices
from central.recordings.store import RecordingStore
from central.storage.database import StoreError, connect
from central.updates.rollout_store import DeviceState, RolloutStore
from central.verification.refine_jobs import JobQueue
from firmware_py.protocol import packet
from firmware_py.protocol.health_messages import Health, Hello, encode_health
from firmware_py.protocol.printable import MAX_CHARACTERS, printable
from firmware_py.runtime.log import Log

HOSTILE = (
    "\x1b]0;owned\x07\x1b[31mred",
    "a[/]b[bold]c[link=x]",
    "\u202egnp.exe\u202c",
    "line\r\nsplit\u2028it\x85",
    "\x9b2J\x7f\x00",
    '"} evil_metric 1\n# HELP',
    "<script>alert(1)</script>",
)


def is_plain(text):
    return all(
        c in "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") for c in text
    )


@given(st.text(max_size=2 * MAX_CHARACTERS))
def test_what_is_printable_is_plain_and_stays_as_it_is(text):
    shown = printable(text)
    assert is_plain(shown) and "\n" not in shown and len(shown) <= 10 * MAX_CHARACTERS + 1
    if len(text) <= MAX_CHARACTERS:
        assert printable(shown) == shown or len(shown) > MAX_CHARACTERS


def test_words_of_any_language_are_left_alone():
    text = "Gerät 3 – 地震計 °C [ok] <b>"
    assert printable(text) == text
    assert printable("\x1b[2J") == "\\x1b[2J" and printable("\u202e") == "\\u202e"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("centre")
    (folder / "central.toml").write_text(
        '[central]\nlisten = "tcp://127.0.0.1:*"\ninsecure = true\ndata_dir = "data"\n'
        '[[model]]\nbundle = "none"\ndecoder = "none"\n'
    )
    with closing(RolloutStore(folder / "data", create=True)) as rollouts:
        rollouts._database.execute(
            "INSERT INTO rollout VALUES (1, 'name', ?, 1, 1, 'canary', '')", (MODEL_HASH,)
        )
    return folder


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=64))
@example(HOSTILE[0])
@example(HOSTILE[1])
@example(HOSTILE[2])
@example(HOSTILE[3])
@example(HOSTILE[4])
@example(HOSTILE[5])
@example(HOSTILE[6])
def test_no_text_of_a_device_is_obeyed_anywhere(store, capsys, text):
    text = text.encode("utf-8", "ignore").decode()[:16]
    data_dir, config = store / "data", str(store / "central.toml")
    log = Log(store / "log")
    with closing(connect(data_dir)) as database:
        database.execute("DELETE FROM device")
    book = DeviceRegistry(data_dir, lambda record: None, log)
    for sequence, (kind, message) in enumerate(
        (
            (packet.HELLO, hostile(Hello("", "", 60, 10, 0), text)),
            (packet.HEALTH, hostile(Health(60, 1, 0, 0, 0, 1, rejected=1), text)),
        ),
        1,
    ):
        payload = encode_health(message)
        book.handle(packet.Record(kind, 0, 1, 1, sequence, model_hash=MODEL_HASH, payload=payload), 90)
    book.traffic.refused((1, 0), text, 1)
    with closing(connect(data_dir)) as database, closing(RolloutStore(data_dir)) as rollouts:
        book.keep(database)
        rollouts.keep_states(1, {(1, 0): DeviceState("failed", text, 0, 1)})
        database.execute("UPDATE rollout SET reason = ?", (text,))
        (rollout,) = rollouts.rollouts()
    log.write("update", reason=text)
    capsys.readouterr()
    with closing(RecordingStore(data_dir)) as recordings, closing(JobQueue(data_dir)) as jobs:
        values = (1, 7, 0, "absent", text, "operator", 0, 0, b"", 0, 0, 1, 1)
        recordings._database.execute(
            f"INSERT OR REPLACE INTO recording VALUES ({','.join('?' * len(values))})", values
        )
        jobs._database.execute(
            "INSERT OR REPLACE INTO refinement_job VALUES (1, 1, 7, 'gather', ?, '', 5, 'blocky', 'failed', ?, NULL,"
            " 0, 1, 1, 1)",
            (text, text),
        )
    for command in (["devices"], ["rollout", "--status"], ["fetch"], ["refine", "--status"]):
        for as_json in ([], ["--json"]):
            assert epic.main(["central", *command, "--config", config, *as_json]) == 0
    shown = capsys.readouterr()
    assert is_plain(shown.out) and shown.err == ""
    (view,) = devices(data_dir)
    assert {view.firmware, view.rejection, view.last_error, view.refusal} == {text}, "all of it is kept"
    for content in (brief(view), rollout_dict(rollout)):
        assert all(map(is_plain, _texts(content)))
    metrics = metrics_text(data_dir, None).decode()
    assert is_plain(metrics)
    assert not any(line.startswith("evil") for line in metrics.splitlines())
    assert is_plain((store / "log").read_text())
    assert all(map(json.loads, (store / "log").read_text().splitlines()))


def hostile(message, text):
    """The message with ``text`` in each of its fields that takes text, those of later versions included."""
    names = [field.name for field in dataclasses.fields(message) if "str" in str(field.type)]
    assert names
    return dataclasses.replace(message, **dict.fromkeys(names, text))


def test_text_of_others_in_an_error_and_in_a_finding_is_not_obeyed(monkeypatch, capsys):
    """A board's, a server's and a file's words come to the terminal in errors."""
    text = "".join(HOSTILE)
    monkeypatch.setattr(
        "central.doctor.examine",
        lambda *_: [
            Finding(text, FAIL, text, text),
            Finding(text, WARN, text, ""),
            Finding("a", OK, "b", ""),
        ],
    )
    assert epic.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert is_plain(out) and "a[/]b[bold]c[link=x]" in out and "FAIL  " in out

    def fail(*_):
        raise StoreError(f"{text}\nsecond line")

    monkeypatch.setattr("central.doctor.examine", fail)
    assert epic.main(["doctor"]) == 2
    err = capsys.readouterr().err
    assert is_plain(err) and err.startswith("error: \\x1b]0;owned") and err.endswith("\nsecond line\n")


def _texts(content):
    if isinstance(content, dict):
        return [text for value in content.values() for text in _texts(value)]
    if isinstance(content, list):
        return [text for value in content for text in _texts(value)]
    return [content] if isinstance(content, str) else []
