"""From `epic board install` to a map: the installed device, as its service, and a real centre."""

import json
import os

import numpy as np
import pytest
from board_machine import BoardMachine
from waiting import wait_until

import epic
from boards.install.linux.layout import STATE
from testbed.processes import Processes
from testbed.run import Deployment, find_model, make_keys
from testbed.samples import load_samples

pytestmark = pytest.mark.slow


def test_a_recording_on_an_installed_board_becomes_a_map_at_the_centre(tmp_path, capsys):
    """Over ssh, as the unit says: user, environment, a read-only system, CURVE. One device of five: a partial map."""
    (tmp_path / "board").mkdir()
    board = BoardMachine(tmp_path / "board", systemd=True)
    model, keys = find_model(None), make_keys(tmp_path / "keys", 5)
    try:
        with Processes() as processes:
            centre = Deployment(processes, model, tmp_path, keys).start_centre(deadline_s=0.5)
            endpoint = centre.wait_for("ready", 180.0)["endpoint"]
            arguments = ["--bundle", str(model.bundle), "--device", "0", "--endpoint", endpoint]
            arguments += ["--board", "generic-linux", "--keys", str(keys), *board.reach]
            assert epic.main(["board", "install", *arguments]) == 0
            assert "hello answered. At the centre: epic central devices" in capsys.readouterr().out
            incoming = board.path(f"{STATE}/incoming")
            np.save(incoming / ".shot-000007.npy", load_samples()[0].gather)
            os.rename(incoming / ".shot-000007.npy", incoming / "shot-000007.npy")

            def maps():
                capsys.readouterr()
                assert (
                    epic.main(["central", "list", "--config", str(tmp_path / "central.toml"), "--json"]) == 0
                )
                return json.loads(capsys.readouterr().out)

            (found,) = wait_until(maps, 180.0, "the map")
            assert (found["event"], found["partial"]) == (7, True)
            assert epic.main(["board", "status", *board.reach, "--json"]) == 0
            assert json.loads(capsys.readouterr().out)["waiting"] == 0
    finally:
        board.close()
