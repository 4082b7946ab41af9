"""``epic keys``: who the centre lets in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from central.options import JsonOption
from central.security.keys import CENTRE, KeysError, allow, list_keys, new_centre, new_keys, revoke
from central.table import print_table
from central.updates.signing import new_signing_key

app = typer.Typer(help="Keys of the centre, its devices and gateways.", no_args_is_help=True)

KeysOption = Annotated[Path, typer.Option("--keys", help="The centre's key folder.")]
NameArgument = Annotated[str, typer.Argument(help="device-N, survey-S-device-N or gateway-NAME.")]


@app.command()
def new(
    name: Annotated[
        str | None, typer.Argument(help=f"device-N, survey-S-device-N, gateway-NAME, or {CENTRE}.")
    ] = None,
    keys: KeysOption = Path("keys"),
    signing: Annotated[
        bool, typer.Option("--signing", help="The key that updates are signed with, instead.")
    ] = False,
) -> None:
    """Make keys in a folder to copy to the device or gateway; `epic keys allow` then admits it."""
    if signing == bool(name):
        raise KeysError("expected a name or --signing, one of them; see: epic keys new --help")
    if signing:
        public, secret = new_signing_key(keys)
        typer.echo(f"{public}: devices that take updates need this file; {secret} signs them, guard it")
        return
    assert name
    if name == CENTRE:
        typer.echo(f"{new_centre(keys)}: devices need this file; the secret one never leaves this machine")
        return
    folder = new_keys(keys, name)
    typer.echo(f"{folder}: copy it to {name}, then: epic keys allow {name} --keys {keys}")


@app.command("allow")
def allow_command(
    name: NameArgument,
    source: Annotated[
        Path | None, typer.Argument(help="Folder with NAME.public (and NAME.mac), if made elsewhere.")
    ] = None,
    keys: KeysOption = Path("keys"),
) -> None:
    """Allow a device or gateway; a running centre notices within seconds."""
    mac = keys / "allowed" / f"{name}.mac"
    had_mac = mac.exists()
    for path in allow(keys, name, source):
        typer.echo(path)
    if had_mac and not mac.exists():
        typer.echo(
            f"{mac}: removed, since {source or keys / name} has no MAC secret; {name} may only use ZeroMQ"
        )


@app.command("revoke")
def revoke_command(name: NameArgument, keys: KeysOption = Path("keys")) -> None:
    """Revoke a device or gateway, on live connections too, within 2 s and without a restart."""
    typer.echo(f"{name} is no longer allowed; its public key is kept as {revoke(keys, name)}")


@app.command("list")
def list_command(
    keys: KeysOption = Path("keys"),
    as_json: JsonOption = False,
) -> None:
    """List the devices and gateways with keys, allowed and revoked."""
    rows = list_keys(keys)
    if as_json:
        typer.echo(json.dumps(rows))
        return
    print_table(
        ("name", "state", "since", "public key", "MAC"),
        [
            (
                row["name"],
                row["state"],
                row["since"],
                row["public_key"][:10] + "…",
                "yes" if row["mac"] else "-",
            )
            for row in rows
        ],
    )
