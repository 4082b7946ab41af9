"""``epic central rollout --status`` says why nothing happens yet."""

from contextlib import closing

import pytest
from fake_decoder import MODEL_HASH

import epic
from central.updates.rollout_store import DeviceState, RolloutStore


@pytest.fixture
def status(data_dir, tmp_path, capsys):
    config = tmp_path / "central.toml"
    config.write_text(
        f'[central]\nlisten = "tcp://127.0.0.1:1"\ninsecure = true\ndata_dir = "{data_dir}"\n'
        '[[model]]\nbundle = "b"\ndecoder = "d"\n'
    )

    def read():
        assert epic.main(["central", "rollout", "--status", "--config", str(config)]) == 0
        return " ".join(capsys.readouterr().out.split())

    return read


def test_a_rollout_that_no_device_takes_says_what_devices_need(data_dir, status):
    with closing(RolloutStore(data_dir)) as store:
        store._database.execute(
            "INSERT INTO rollout VALUES (4, 'mixed', ?, 1, 1, 'canary', '')", (MODEL_HASH,)
        )
        assert "no device has asked for it yet: those with [update] in node.toml ask" in status()
        store.keep_states(4, {(1, 2): DeviceState("downloading", "", 512, 9)})
        assert "no device has asked" not in status()
