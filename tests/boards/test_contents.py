"""What lands on a Linux board with an accelerator, and on one without."""

import tomllib

import pytest
from tiny import ENCODER, bundle_fields

from boards.install.linux.contents import InstallRequest, contents
from boards.install.linux.layout import PREFIX, SYSUSERS, UNIT, Layout
from boards.install.settings import Settings
from boards.profile import load_board
from central.security.keys import new_keys
from firmware_py.inference.bundle import compiled_encoder, create_bundle


@pytest.mark.parametrize(
    ("board", "compiled", "accelerator"),
    [
        ("coral-usb-accelerator", True, "edgetpu"),
        ("coral-usb-accelerator", False, None),
        ("raspberry-pi-4", True, None),
    ],
)
def test_an_edge_tpu_encodes_where_the_board_has_one_and_the_bundle_was_compiled_for_it(
    tmp_path, board, compiled, accelerator
):
    extra = {compiled_encoder("edgetpu"): b"compiled"} if compiled else None
    create_bundle(tmp_path / "bundle", ENCODER, bundle_fields(), extra)
    new_keys(tmp_path / "keys", "device-0")
    settings = Settings(0, "tcp://192.0.2.1:5557", tmp_path / "keys")
    found = contents(InstallRequest(load_board(board), tmp_path / "bundle", settings), Layout())
    node = tomllib.loads(found[f"{PREFIX}/node.toml"].data.decode())["node"]
    assert node.get("accelerator") == accelerator
    assert (b"DeviceAllow=char-usb_device rw" in found[UNIT].data) is bool(accelerator)
    assert (b"m epic plugdev\n" in found[SYSUSERS].data) is bool(accelerator)
    assert (f"{PREFIX}/bundle/{compiled_encoder('edgetpu')}" in found) is compiled
