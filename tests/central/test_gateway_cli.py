"""``epic central gateway`` as an operator meets it."""

import json
import signal
import subprocess
import sys

import pytest
from waiting import wait_until

import epic
from central.security.keys import new_keys

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tmp_path):
    """A gateway's own file beside its keys."""
    new_keys(tmp_path / "keys", "gateway-a")
    path = tmp_path / "gateway.toml"
    path.write_text(
        '[gateway]\nname = "gateway-a"\ncentre = "tcp://127.0.0.1:5557"\nkeys = "keys"\nlog = "gateway.jsonl"\n'
    )
    return path


def complaint(capsys, *arguments) -> str:
    """The one line that a gateway which cannot start leaves."""
    assert epic.main(["central", "gateway", *map(str, arguments)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith("error: ")
    return line


def test_what_cannot_be_served_is_one_line(config, tmp_path, capsys):
    given = ("--config", config)
    assert "no line to serve; give --port" in complaint(capsys, *given)
    assert "expected host:port, got 'nowhere'" in complaint(capsys, *given, "--tcp", "nowhere")
    assert "203.0.113.1:1: cannot listen there" in complaint(capsys, *given, "--tcp", "203.0.113.1:1")
    assert "keys and insecure exclude" in complaint(capsys, *given, "--port", "/dev/x", "--insecure")
    assert "cannot be read" in complaint(capsys, "--config", tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "gateway-a"', 'name = "gateway-b"', "epic keys new gateway-b"),
        ('name = "gateway-a"', 'name = "../keys"', "gateway.name"),
        ('centre = "tcp://127.0.0.1:5557"', "", "gateway.centre: missing"),
        ('centre = "tcp://127.0.0.1:5557"', 'centre = "tcp://127.0.0.1"', "gateway.centre"),
        ('keys = "keys"', "", "gateway.keys: missing"),
        ('log = "gateway.jsonl"', 'log = "gateway.toml/log"', "cannot be written"),
        ("[gateway]", "[gateway]\nbauds = 9600", "[gateway] unknown key 'bauds'; did you mean 'baud'"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(config, capsys, old, new, message):
    config.write_text(config.read_text().replace(old, new))
    assert message in complaint(capsys, "--config", config, "--port", "/dev/x")


def test_without_keys_only_this_machine_is_served_and_reached(config, capsys):
    open_to_all = config.read_text().replace('keys = "keys"', "insecure = true")
    config.write_text(open_to_all)
    assert "only on loopback" in complaint(capsys, "--config", config, "--tcp", "0.0.0.0:5558")
    config.write_text(open_to_all.replace("127.0.0.1", "192.0.2.1"))
    assert "only to a centre on this machine" in complaint(capsys, "--config", config, "--port", "/dev/x")


def test_a_secret_that_others_may_read_is_refused(config, tmp_path, capsys):
    (tmp_path / "keys/gateway-a/gateway-a.secret").chmod(0o644)
    assert "chmod 600" in complaint(capsys, "--config", config, "--port", "/dev/x")


def test_a_centres_file_says_where_it_is_and_where_its_keys_are(tmp_path, capsys):
    """Beside a centre that listens on every address; its other sections are none of the gateway's business."""
    path = tmp_path / "central.toml"
    path.write_text('[central]\nlisten = "tcp://0.0.0.0:5557"\ndata_dir = "data"\nkeys = "keys"\n[[model]]\n')
    message = complaint(capsys, "--config", path, "--port", "/dev/x")
    assert str(tmp_path / "keys/gateway-local") in message
    new_keys(tmp_path / "keys", "gateway-local")
    from central.config import load_gateway

    section = load_gateway(path, ["/dev/x"], None, False)
    assert (section.centre, section.keys) == ("tcp://127.0.0.1:5557", tmp_path / "keys")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_well(config, tmp_path, number):
    log = tmp_path / "gateway.jsonl"
    command = ["-m", "epic", "central", "gateway", "--config", str(config), "--port", "/dev/not-there"]
    process = subprocess.Popen(
        [sys.executable, *command, "--tcp", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: log.exists() and '"line_down"' in log.read_text(), 60, "the port that is not there")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "gateway-a serves tcp://127.0.0.1:5557" in out
    rows = {row["message"]: row for row in map(json.loads, log.read_text().splitlines())}
    assert rows["gateway"]["ports"] == ["/dev/not-there"]
    assert rows["gateway"]["tcp"].startswith("127.0.0.1:")
    assert "stopped" in rows
