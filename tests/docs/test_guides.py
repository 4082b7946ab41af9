"""Every command of the README and of the guides is run, in order, as a reader would; what is not run is listed here."""

import os
import re
import shlex
import shutil
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import zmq
from board_machine import BoardMachine
from fake_centre import FakeCentre
from field_recording import write_miniseed, write_segy
from guide import Command, File, Reader, looks_like, read_steps
from ports import free_port

from central.security.keys import new_centre, read_centre
from physics.acquisition import Acquisition
from testbed.samples import load_samples

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "docs" / "guides"
MPREMOTE = ROOT / "tests" / "support" / "mpremote"
NETWORKS = ROOT / "tests" / "support" / "small_networks.py"
MICROPYTHON = ROOT / "tests" / "support" / "micropython" / "board"


@dataclass(frozen=True)
class Instead:
    """In ``guide``, ``find`` is replaced by ``put`` before it is run, as ``why`` says; {NAME} in it is filled in."""

    guide: str
    find: str
    put: str
    why: str


@dataclass(frozen=True)
class NotRun:
    """A command of ``guide`` that is not run, and why."""

    guide: str
    command: str
    why: str


INSTEAD = (
    Instead("own-data.md", '"XX.R02..EHZ"]', "{receivers}]", "the guide shows three of 70"),
    Instead("own-data.md", "127.0.0.1:8080", "127.0.0.1:{page}", "a free port"),
    Instead("own-data.md", "page --config", "page --listen 127.0.0.1:{page} --config", "a free port"),
    Instead("centre.md", "0.0.0.0:5557", "127.0.0.1:{centre}", "a free port, of this machine alone"),
    Instead("centre.md", "127.0.0.1:5557", "127.0.0.1:{centre}", "a free port"),
    Instead("centre.md", "127.0.0.1:8080", "127.0.0.1:{page}", "a free port"),
    Instead("pi.md", "--board raspberry-pi-4 --host", "--board generic-linux --host", "this machine is none"),
    Instead("pi.md", "on raspberry-pi-4\n", "on generic-linux\n", "this machine is none"),
    Instead("pi.md", "--host root@192.0.2.7", "--host board --ssh-config {ssh}", "an sshd on loopback"),
    Instead("pi.md", "scp line", "scp -O -F {ssh} line", "an sshd on loopback, without sftp"),
    Instead("pi.md", "root@192.0.2.7:/var", "board:/var", "an sshd on loopback"),
    Instead("pi.md", "ssh root@192.0.2.7 ", "ssh -F {ssh} board ", "an sshd on loopback"),
    Instead(
        "pi.md", "tcp://192.0.2.1:5557", "tcp://127.0.0.1:{centre}", "it acknowledges nothing: records wait"
    ),
    Instead("microcontroller.md", "/dev/ttyACM0", "{board}", "a pseudo-terminal that says what a board does"),
    Instead(
        "microcontroller.md", "0.0.0.0:5558", "127.0.0.1:{gateway}", "a free port, of this machine alone"
    ),
    Instead("microcontroller.md", "127.0.0.1:5557", "127.0.0.1:{centre}", "a free port"),
    Instead(
        "recordings.md", "--iterations 120", "--iterations 1", "that it runs is tested, not what it gains"
    ),
    Instead("own-survey.md", "--count 200", "--count 26", "50 samples are the fewest to train on"),
    Instead("own-survey.md", "--count 20 ", "--count 3 ", "two cores"),
    Instead(
        "own-survey.md",
        "epic train epic --data data/train --out runs/mine --minutes 30",
        f"python {NETWORKS} train epic --data data/train --out runs/mine --encoder micro --minutes 0.05",
        "that it runs is tested, not what it learns",
    ),
    Instead("conversion.md", "epochs=30", "epochs=5", "that it runs is tested, not what it learns"),
)
NOT_RUN = (
    NotRun("README.md", "make demo", "what it runs is tests/testbed/test_run.py, and CI installs as it does"),
    NotRun("README.md", "make test", "this is it"),
    NotRun("pi.md", "ssh-copy-id root@192.0.2.7", "asks for a password; the stand-in has its key"),
)

# No machine of the tests has one; that the options exist is tests/docs/test_commands.py.
NEEDS_A_GPU = {"gpu.md"}
# Needs a survey of weeks; tests/central/test_adapt.py runs its commands on a small one.
NEEDS_A_SURVEY = {"adapt.md"}


def guide_path(name: str) -> Path:
    return ROOT / name if name == "README.md" else GUIDES / name


def as_run(name: str, values: dict[str, object]) -> list[Command | File]:
    """The steps of a guide with what stands in put in, and without what is not run."""
    text = guide_path(name).read_text()
    for instead in INSTEAD:
        if instead.guide == name:
            assert instead.find in text, f"{name} has no {instead.find!r} any more: take it out of INSTEAD"
            put = instead.put
            for key, value in values.items():
                put = put.replace(f"{{{key}}}", str(value))
            text = text.replace(instead.find, put)
    skipped = {skip.command for skip in NOT_RUN if skip.guide == name}
    steps = read_steps(text)
    commands = [step.text.split("#")[0].strip() for step in steps if isinstance(step, Command)]
    assert not (gone := skipped - set(commands)), f"{name} has no {gone} any more: take it out of NOT_RUN"
    return [s for s in steps if not (isinstance(s, Command) and s.text.split("#")[0].strip() in skipped)]


def leave_demo(folder: Path, gather: np.ndarray) -> None:
    """What `make demo` leaves, of three events."""
    (folder / "out" / "demo").mkdir(parents=True)
    np.save(folder / "out" / "demo" / "gathers.npy", np.stack([gather] * 3))


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """`epic` and `python` of this tree on PATH, as after `. .venv/bin/activate`."""
    commands = tmp_path_factory.mktemp("bin")
    for name, arguments in (("epic", "-m epic "), ("python", "")):
        script = commands / name
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments}"$@"\n')
        script.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "200",
    }


@pytest.fixture
def carry_out(environment, tmp_path):
    """Carries a guide out in a folder of its own that has the released models, as the clone has."""

    def carry_out(name: str, folder: Path = tmp_path, more: dict | None = None, **values: object) -> Path:
        if not (folder / "models").exists():
            (folder / "models").mkdir()
            (folder / "models" / "zoo").symlink_to(ROOT / "models" / "zoo")
        reader = Reader(folder, environment | (more or {}))
        try:
            for step in as_run(name, values):
                reader.write(step) if isinstance(step, File) else reader.run(step)
        finally:
            reader.close()
        return folder

    return carry_out


@pytest.fixture(scope="module")
def gather():
    """One of the shipped gathers ``(S, T, R)``, as a recording of one's own."""
    return load_samples()[0].gather


def test_every_guide_is_carried_out_by_a_test():
    tested = {
        "own-data.md",
        "centre.md",
        "pi.md",
        "own-survey.md",
        "conversion.md",
        "microcontroller.md",
        "python.md",
        "recordings.md",
    }
    assert {path.name for path in GUIDES.glob("*.md")} == tested | NEEDS_A_GPU | NEEDS_A_SURVEY


def test_python(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(
        r"^```python\n(.*?)^```$", guide_path("python.md").read_text(), re.MULTILINE | re.DOTALL
    )
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "python.md", "exec"), {})
    assert "OOD score" in capsys.readouterr().out
    assert (tmp_path / "map.png").exists() and (tmp_path / "map.nc").exists()


def test_what_stands_in_and_what_is_not_run_is_of_a_guide():
    for entry in (*INSTEAD, *NOT_RUN):
        assert guide_path(entry.guide).exists() and entry.why


def test_own_data(carry_out, tmp_path, gather):
    pytest.importorskip("segyio", reason="the extra geo is not installed")
    pytest.importorskip("obspy", reason="the extra geo is not installed")
    survey = Acquisition.openfwi()
    write_segy(tmp_path / "shots.sgy", gather, survey)
    receivers, _ = write_miniseed(tmp_path / "line.mseed", gather, survey)
    carry_out("own-data.md", page=free_port(), receivers=", ".join(f'"{name}"' for name in receivers[2:]))
    by_segy, by_miniseed = (np.load(tmp_path / name) for name in ("my-gather.npy", "from-mseed.npy"))
    assert np.abs(by_segy - by_miniseed).max() < 0.05 * np.abs(by_miniseed).max(), (
        "one recording, two formats"
    )


def test_a_centre(carry_out, tmp_path, gather):
    leave_demo(tmp_path, gather)
    carry_out("centre.md", centre=free_port(), page=free_port())


@pytest.mark.long
def test_recordings(carry_out, tmp_path, gather):
    pytest.importorskip("segyio", reason="the extra geo is not installed")
    carry_out("recordings.md")
    fetched = np.load(tmp_path / "event1.npy")
    np.testing.assert_array_equal(fetched, gather)
    names = {path.name for path in tmp_path.glob("event1.*")}
    assert names >= {f"event1.{kind}{more}" for kind in ("sgy", "mseed", "png") for more in ("", ".json")}


def test_a_pi(carry_out, tmp_path, gather):
    """On a stand-in for a board: an sshd with a file system and a systemctl of its own."""
    np.save(tmp_path / "line-12.npy", gather[:, :, :14])
    (tmp_path / "board").mkdir()
    board = BoardMachine(tmp_path / "board", systemd=True)
    port = free_port()
    _, secret = read_centre(new_centre(tmp_path / "keys").parent)
    options = {zmq.CURVE_SERVER: 1, zmq.CURVE_SECRETKEY: secret}
    try:
        # It answers HELLO and HEALTH, and acknowledges nothing.
        with FakeCentre(lambda record: None, f"tcp://127.0.0.1:{port}", options, answer_said=True):
            carry_out("pi.md", ssh=tmp_path / "board" / "config", centre=port)
    finally:
        board.close()


def test_a_microcontroller(carry_out, environment, tmp_path, gather):
    """The board is a folder behind a stand-in for mpremote; nobody is at the other end of its link."""
    leave_demo(tmp_path, gather)
    flash = tmp_path / "flash"
    flash.mkdir()
    shutil.copy(MICROPYTHON / "machine.py", flash)
    # Firmware without `ml`, whose native code can be compiled.
    (flash / "micropython.py").write_text("def viper(function):\n    return function\n")
    near, far = os.openpty()
    over = threading.Event()

    def say():
        while not over.wait(0.2):
            os.write(near, b"epic: hello sent, 0 records wait\r\n")

    speaker = threading.Thread(target=say)
    speaker.start()
    try:
        with_mpremote = {
            "PATH": f"{MPREMOTE}:{environment['PATH']}",
            "BOARD": str(tmp_path),
            "STAND_IN_PYTHON": sys.executable,
        }
        carry_out(
            "microcontroller.md",
            more=with_mpremote,
            board=os.ttyname(far),
            centre=free_port(),
            gateway=free_port(),
        )
    finally:
        over.set()
        speaker.join()
        os.close(near)
        os.close(far)
    assert (flash / "main.py").exists() and (flash / "gathers.npy").exists()
    assert (flash / "bundle" / "encoder.epicnn").exists()
    assert not (flash / "bundle" / "encoder.tflite").exists()


@pytest.mark.long
def test_an_own_survey_and_its_conversion(carry_out, tmp_path):
    """The second guide goes on where the first ends: with the run that it trained."""
    carry_out("own-survey.md")
    carry_out("conversion.md", folder=tmp_path)


TRIED = """
# A guide
```toml
# a.toml
x = 1
```
```console
$ cat \\
    a.toml
x = 7
$ echo one; echo; echo two 22
one
...2
```
```sh
test -f a.toml    # there it is
```
"""


def test_a_guide_is_read_and_carried_out(tmp_path):
    steps = read_steps(TRIED)
    assert [type(step).__name__ for step in steps] == ["File", "Command", "Command", "Command"]
    reader = Reader(tmp_path, dict(os.environ))
    for step in steps:
        reader.write(step) if isinstance(step, File) else reader.run(step)
    for wrong in (Command("false"), Command("echo a", ["b"]), Command("cat none")):
        with pytest.raises(AssertionError):
            reader.run(wrong)


def test_what_is_printed_is_compared_loosely_but_in_order():
    printed = "map   12 x 70\n  of cells\nwritten: 3.5 s\n"
    assert looks_like(printed, ["map 40 x 75 of cells", "written: 1 s"])
    assert looks_like(printed, ["map ... cells"]) and looks_like(printed, [])
    assert not looks_like(printed, ["written: 1 s", "map"])
    assert not looks_like(printed, ["map 40 y 75"])
