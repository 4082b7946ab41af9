"""``epic central backup`` and ``restore``: all that a centre keeps in one file, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from central.config import ConfigError, load_config
from central.options import ConfigOption
from central.storage.backup import KEYS, back_up, restore


def backup(
    file: Annotated[
        Path, typer.Argument(help="Backup to write (.tar). Its folder needs free space of twice its size.")
    ],
    config: ConfigOption,
    with_keys: Annotated[
        bool, typer.Option("--with-keys", help="Include the key folder; protect the file accordingly.")
    ] = False,
) -> None:
    """Back up records, maps, recordings and released or adapted models into one file. The centre may run meanwhile."""
    central = load_config(config).central
    if with_keys and central.keys is None:
        raise ConfigError(f"{config}: central.keys: missing, and --with-keys asks for them; leave it out")
    manifest = back_up(central.data_dir, central.keys if with_keys else None, file)
    size_mb = file.stat().st_size / 1e6
    typer.echo(f"{file}: {_said(manifest)}, {size_mb:.1f} MB")


def restore_backup(
    file: Annotated[Path, typer.Argument(help="Backup that `epic central backup` wrote.")],
    config: ConfigOption,
) -> None:
    """Restore a backup into the data folder of a configuration, which must be empty and not in use."""
    central = load_config(config).central
    manifest = restore(file, central.data_dir, central.keys)
    typer.echo(f"{central.data_dir}: {_said(manifest)}")
    if any(name.startswith(f"{KEYS}/") for name in manifest["files"]):
        typer.echo(f"{central.keys}: the keys")


def _said(manifest: dict) -> str:
    return f"records up to {manifest['last_record']}, {manifest['maps']} maps, {len(manifest['files']) - 1} other files"
