"""Everything that a centre and its devices need to start: keys, ``central.toml``, one ``node.toml`` a device."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from central.errors import CentralError
from central.security.keys import allow, new_keys
from central.updates.signing import new_signing_key
from firmware_py.inference.bundle import load_bundle
from firmware_py.links.keys import device_name
from firmware_py.runtime.config import is_loopback

CONFIG = "central.toml"
PORT = 5557

_CENTRAL = """\
[central]
listen = {listen}
data_dir = "central-data"
keys = "keys"
page_listen = "127.0.0.1:8080"
log = "central.jsonl"

[[model]]
bundle = {bundle}
decoder = {decoder}
"""
_NODE = """\
[node]
device = {device}
bundle = {bundle}             # on another machine: copy the bundle and name its folder there

[link]
endpoint = {endpoint}
server_key = "keys/centre.public"
public_key = {public}
secret_key = {secret}

[source]
kind = "folder"
path = "incoming"             # recordings go here: NAME<event number>.npy

[update]                      # takes models that this centre rolls out
key = "keys/signing.public"
"""


class SetupError(CentralError, ValueError):
    """A folder that is in use already, or more devices than the model's survey has."""


def init_centre(folder: Path, model: Path, devices: int | None, address: str) -> list[Path]:
    """Make ``keys/``, a folder with ``node.toml`` for each device, and ``central.toml``; all of it or nothing.

    Args:
        folder: where they are made; created if it is not there.
        model: released model with bundle/ and decoder/.
        devices: number of devices, those of the model's survey where it is None.
        address: host name or IP address at which devices reach the centre.

    Returns:
        The files and folders that were made.

    Raises:
        SetupError: what would be made already exists, or the survey has fewer devices.
        BundleError: ``model`` is none.
    """
    bundle = load_bundle(model / "bundle")
    expected = len(bundle.manifest["acquisition"]["device_receivers"])
    devices = devices or expected
    if devices > expected:
        raise SetupError(
            f"--devices {devices}: expected at most {expected}, as {bundle.name} is for a survey of that many; train a "
            "model for yours, or give fewer"
        )
    names = [device_name(1, number) for number in range(devices)]
    for name in ("keys", CONFIG, *names):
        if (folder / name).exists():
            raise SetupError(f"{folder / name}: already exists; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / ".init.new"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        signing, _ = new_signing_key(aside / "keys")
        for number, name in enumerate(names):
            made = new_keys(aside / "keys", name)
            allow(aside / "keys", name)
            shutil.copytree(made, aside / name / "keys")
            shutil.copy(signing, aside / name / "keys")
            (aside / name / "incoming").mkdir()
            (aside / name / "node.toml").write_text(
                _NODE.format(
                    device=number,
                    bundle=_quote(bundle.folder.resolve()),
                    endpoint=_quote(f"tcp://{address}:{PORT}"),
                    public=_quote(f"keys/{name}.public"),
                    secret=_quote(f"keys/{name}.secret"),
                )
            )
        host = "127.0.0.1" if is_loopback(f"{address}:{PORT}") else "0.0.0.0"
        (aside / CONFIG).write_text(
            _CENTRAL.format(
                listen=_quote(f"tcp://{host}:{PORT}"),
                bundle=_quote(bundle.folder.resolve()),
                decoder=_quote((model / "decoder").resolve()),
            )
        )
        # The configuration last: without it nothing starts.
        made_all = [folder / name for name in ("keys", *names, CONFIG)]
        for path in made_all:
            os.replace(aside / path.name, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return made_all


def _quote(text: Path | str) -> str:
    return json.dumps(str(text), ensure_ascii=False)
