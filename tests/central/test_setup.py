"""``epic central init``: what it makes starts a centre and every device without another command."""

import stat

import pytest
from releases import make_release

import epic
from central.config import load_config
from central.security.keys import list_keys
from central.setup import SetupError, init_centre
from central.updates.signing import read_signing_key
from firmware_py.runtime.check import check
from firmware_py.runtime.config import load_config as load_node


@pytest.fixture
def model(tmp_path):
    """A released model as far as a device and the command look; its survey has two devices."""
    make_release(tmp_path / "model" / "bundle", "tiny")
    return tmp_path / "model"


def test_what_is_made_is_whole(tmp_path, model):
    folder = tmp_path / "centre"
    init_centre(folder, model, None, "10.0.0.7")
    central = load_config(folder / "central.toml").central
    assert (central.listen, central.keys) == ("tcp://0.0.0.0:5557", folder / "keys")
    assert [(row["name"], row["state"]) for row in list_keys(folder / "keys")] == [
        ("device-0", "allowed"),
        ("device-1", "allowed"),
    ]
    public = folder / "keys" / "signing.public"
    read_signing_key(folder / "keys" / "signing.secret")
    for device in (0, 1):
        config = load_node(folder / f"device-{device}" / "node.toml")
        assert config.link.endpoint == "tcp://10.0.0.7:5557"
        assert check(config)["device"] == device
        assert config.update and config.update.key.read_bytes() == public.read_bytes()
        assert stat.S_IMODE(config.link.secret_key.stat().st_mode) == 0o600


def test_a_device_without_its_secret_is_not_ready(tmp_path, model):
    from firmware_py.links.base import LinkError

    init_centre(tmp_path / "centre", model, 1, "127.0.0.1")
    config = load_node(tmp_path / "centre" / "device-0" / "node.toml")
    config.link.secret_key.unlink()
    with pytest.raises(LinkError, match="device-0.secret"):
        check(config)


def test_nothing_is_replaced_and_nothing_left_half_made(tmp_path, model):
    with pytest.raises(SetupError, match="--devices 3: expected at most 2"):
        init_centre(tmp_path / "centre", model, 3, "127.0.0.1")
    init_centre(tmp_path / "centre", model, 1, "127.0.0.1")
    before = sorted((tmp_path / "centre").rglob("*"))
    with pytest.raises(SetupError, match="already exists"):
        init_centre(tmp_path / "centre", model, 1, "127.0.0.1")
    assert sorted((tmp_path / "centre").rglob("*")) == before


def test_a_released_model_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert epic.main(["central", "init", "mine", "--devices", "2"]) == 0
    assert epic.main(["central", "init", "micro", "--model", "epic-micro-64"]) == 0
    bundles = [load_config(tmp_path / name / "central.toml").model[0].bundle for name in ("mine", "micro")]
    assert [bundle.parent.name for bundle in bundles] == ["epic-small-128", "epic-micro-64"]
    capsys.readouterr()
    for command in (
        ["central", "init", "no", "--model", "epic-huge"],
        ["central", "rollout", "epic-huge", "--config", "mine/central.toml"],
        ["invert", "x.npy", "--out", "maps", "--model", "epic-huge"],
        ["testbed", "run", "--model", "epic-huge"],
    ):
        assert epic.main(command) == 2
        assert (
            "expected one of epic-base-256, epic-micro-64, epic-small-128, or a folder"
            in capsys.readouterr().err
        )


def test_the_configuration_of_the_folder_or_of_the_environment_is_taken(tmp_path, model, monkeypatch, capsys):
    init_centre(tmp_path / "centre", model, 1, "127.0.0.1")
    monkeypatch.delenv("EPIC_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    assert epic.main(["central", "list"]) == 2
    assert "central.toml: cannot be read" in capsys.readouterr().err
    monkeypatch.setenv("EPIC_CONFIG", str(tmp_path / "centre" / "central.toml"))
    epic.main(["central", "list"])
    assert "central.toml" not in capsys.readouterr().err
    monkeypatch.delenv("EPIC_CONFIG")
    monkeypatch.chdir(tmp_path / "centre")
    epic.main(["central", "devices"])
    assert "central.toml" not in capsys.readouterr().err
