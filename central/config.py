"""``central.toml``: what the centre is told."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from firmware_py.config import is_loopback


class ConfigError(ValueError):
    """``central.toml`` is missing, not TOML, or says something impossible."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CentralSection(_Section):
    """Where to listen and where to keep; an event waits ``deadline_s`` for its last device.

    ``keys`` is the folder that ``epic keys`` made; only a centre on loopback may do without, ``insecure``.
    """

    listen: str = Field(pattern=r"^(tcp|ipc)://.+")
    data_dir: Path
    keys: Path | None = None
    insecure: bool = Field(default=False, strict=True)
    deadline_s: float = Field(default=10.0, gt=0, allow_inf_nan=False, strict=True)
    pictures: bool = Field(default=True, strict=True)
    log: Path | None = None


class ModelSection(_Section):
    """A model the centre accepts: the devices' bundle and the decoder that belongs to it."""

    bundle: Path
    decoder: Path


class CentralConfig(_Section):
    central: CentralSection
    model: list[ModelSection] = Field(min_length=1)


def load_config(path: Path, insecure: bool = False) -> CentralConfig:
    """Read ``central.toml``; relative paths in it are relative to its folder. Raises ``ConfigError``.

    ``insecure`` has the effect of the key of that name.
    """
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give --config a central.toml"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML ({error})") from None
    try:
        config = CentralConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        problem = {"extra_forbidden": "not a key of central.toml", "missing": "required, and missing"}.get(
            first["type"], f"{first['msg']}, got {first['input']!r}"
        )
        raise ConfigError(f"{path}: {place}: {problem}") from None
    base = path.resolve().parent
    if insecure:
        config = config.model_copy(update={"central": config.central.model_copy(update={"insecure": True})})
    _check_security(path, config.central)
    central = config.central.model_copy(
        update={
            "data_dir": base / config.central.data_dir,
            "keys": config.central.keys and base / config.central.keys,
            "log": config.central.log and base / config.central.log,
        }
    )
    models = [ModelSection(bundle=base / m.bundle, decoder=base / m.decoder) for m in config.model]
    return CentralConfig(central=central, model=models)


def _check_security(path: Path, central: CentralSection) -> None:
    if central.insecure and central.keys:
        raise ConfigError(f"{path}: central: keys and insecure exclude each other; remove one")
    if not central.insecure and not central.keys:
        raise ConfigError(
            f"{path}: central.keys: missing; make the centre's and the devices' keys with `epic keys new`, or, "
            "for a trial on this machine alone, say insecure = true"
        )
    if central.insecure and not is_loopback(central.listen):
        raise ConfigError(
            f"{path}: central.insecure: only on loopback (tcp://127.0.0.1:port), not on {central.listen}, "
            "where anybody could send; make keys with `epic keys new`"
        )
