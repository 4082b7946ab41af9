"""Read ``central.toml``, the centre's configuration."""

from __future__ import annotations

import re
import tomllib
import warnings
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from central.errors import CentralError
from central.export.line import Line
from firmware_py.links.base import LinkError
from firmware_py.links.keys import check_private
from firmware_py.protocol.recording_messages import MAX_MISFIT_PPM
from firmware_py.runtime.config import is_loopback
from firmware_py.runtime.toml_keys import find_unknown, line_of

# Minimum token length; too long for guessing over a network.
MIN_TOKEN = 16
# Names of keys of [central] until version 0.1; they work for one more release.
OLD_NAMES = {"page": "page_listen", "metrics": "metrics_listen", "check": "consistency_check"}


class ConfigError(CentralError, ValueError):
    """``central.toml`` is missing, is not TOML, or has an invalid value."""


def _check_port(address: str | None) -> str | None:
    """``address`` with a port of 1 to 65535 or ``*``; 0 is any free one. Raises ``ValueError``."""
    match = re.search(r":(\d+)$", address or "")
    if match and int(match[1]) > 0xFFFF:
        raise ValueError(f"expected a port of at most {0xFFFF}, got {match[1]}")
    return address


Address = Annotated[str, AfterValidator(_check_port)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Hour = Annotated[int, Field(ge=0, le=23, strict=True)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CentralSection(_Section):
    """Endpoints and storage of the centre; an event waits ``deadline_s`` for its last device.

    Attributes:
        keys: Folder made by ``epic keys``. Only a centre on loopback may run without, ``insecure``.
        metrics_listen: Endpoint for Prometheus, host:port, local only.
        page_listen: Endpoint of the operator's page, host:port; needs a token unless it is on loopback.
        decode_workers: Number of decoder processes; 0 decodes in the centre's own.
        consistency_check: Check stored maps by forward modelling, in one more process of the lowest priority.
    """

    listen: Address = Field(pattern=r"^(tcp|ipc)://.+")
    data_dir: Path
    keys: Path | None = None
    insecure: bool = Field(default=False, strict=True)
    deadline_s: float = Field(default=10.0, gt=0, allow_inf_nan=False, strict=True)
    pictures: bool = Field(default=True, strict=True)
    decode_workers: int = Field(default=0, ge=0, le=64, strict=True)
    consistency_check: bool = Field(default=False, strict=True)
    log: Path | None = None
    metrics_listen: Address | None = Field(default=None, pattern=r"^.+:\d{1,5}$")
    page_listen: Address | None = Field(default=None, pattern=r"^.+:\d{1,5}$")
    page_token: str | None = Field(default=None, min_length=MIN_TOKEN)
    page_token_file: Path | None = None

    @model_validator(mode="before")
    @classmethod
    def _take_old_names(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for old, new in OLD_NAMES.items():
            if old not in values:
                continue
            if new in values:
                raise ValueError(f"{old} is the old name of {new}; remove {old}")
            warnings.warn(f"central.{old} is deprecated; call it {new}", FutureWarning, stacklevel=2)
            values = {new if name == old else name: value for name, value in values.items()}
        return values

    def read_page_token(self) -> str | None:
        """Return the page's token, or None if the page is local only.

        Raises:
            ConfigError: The token file is missing or holds no valid token.
        """
        path = self.page_token_file
        if path is None:
            return self.page_token
        try:
            check_private(path)
            token = path.read_text().strip()
        except (LinkError, OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"central.page_token_file: {error}") from None
        if len(token) < MIN_TOKEN:
            raise ConfigError(f"{path}: expected a token of at least {MIN_TOKEN} characters")
        return token


class ModelSection(_Section):
    """Model that the centre accepts: the devices' bundle and its decoder."""

    bundle: Path
    decoder: Path


class GatewaySection(_Section):
    """Devices on serial ``ports`` (8N1 at ``baud``) and on plain TCP, ``tcp`` host:port.

    In ``central.toml`` the centre itself serves them. A separate gateway (``epic central gateway``) connects to its
    ``centre`` as ``name``, with KEYS/NAME/. Devices' MACs are checked against KEYS/allowed/.
    """

    ports: list[str] = []
    baud: int = Field(default=115_200, gt=0, strict=True)
    tcp: Address | None = Field(default=None, pattern=r"^.+:\d{1,5}$")
    centre: Address | None = Field(default=None, pattern=r"^(tcp://.+:\d{1,5}|ipc://.+)$")
    name: str = Field(default="gateway-local", pattern=r"^gateway-[a-z0-9][a-z0-9-]{0,40}$")
    keys: Path | None = None
    insecure: bool = Field(default=False, strict=True)
    log: Path | None = None


class RetentionSection(_Section):
    """Retention limits; events are deleted oldest first, none by default. Flagged and refined events are kept.

    Events are deleted if older than ``max_age_days``, beyond ``max_events``, or while less than ``min_free_mib`` of the
    disk is free. On low disk space superseded maps and pictures are deleted before events. Fetched recordings are
    deleted with their event; beyond ``max_recordings_mib`` in all, those fetched first are deleted.
    """

    max_age_days: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_events: int | None = Field(default=None, ge=1, strict=True)
    min_free_mib: int | None = Field(default=None, ge=1, strict=True)
    max_recordings_mib: int | None = Field(default=None, ge=1, strict=True)


class FetchSection(_Section):
    """Recordings on request: the link's budget, and the events that are fetched without an operator.

    Attributes:
        bytes_per_day: Received of one device's recordings in a day (UTC); then the rest waits for the next day.
        hours_utc: Hours of the day, from (inclusive) and to (exclusive), such as [20, 6]; equal: all day.
        flagged: Fetch the recordings of events whose map is flagged.
        every: Fetch the recordings of events whose number is a multiple of this.
        misfit_ppm: Allowed relative RMS misfit of what the policy fetches, parts per million; 0 for lossless.
    """

    bytes_per_day: int = Field(default=20_000_000, ge=1, strict=True)
    hours_utc: tuple[Hour, Hour] = (0, 0)
    flagged: bool = Field(default=False, strict=True)
    every: int | None = Field(default=None, ge=1, strict=True)
    misfit_ppm: int = Field(default=0, ge=0, lt=MAX_MISFIT_PPM, strict=True)


class LineSection(_Section):
    """Position of the survey's line, for coordinates in exported maps; `epic data import` prints it.

    ``origin_m`` is x and y of cell 0. ``azimuth_deg`` is the line's direction clockwise from y (north). ``crs`` names
    the coordinate system, such as EPSG:25832.
    """

    origin_m: tuple[Finite, Finite]
    azimuth_deg: float = Field(ge=0, lt=360, allow_inf_nan=False)
    crs: str | None = None


class CentralConfig(_Section):
    central: CentralSection
    model: list[ModelSection] = Field(min_length=1)
    gateway: GatewaySection | None = None
    retention: RetentionSection = RetentionSection()
    fetch: FetchSection = FetchSection()
    line: LineSection | None = None

    def export_line(self) -> Line | None:
        """Return the position of the survey's line, or None if the file does not give it."""
        return Line(self.line.origin_m, self.line.azimuth_deg, self.line.crs) if self.line else None


class _GatewayFile(BaseModel):
    """A gateway's own file, or the ``central.toml`` of the centre on the same machine."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    central: CentralSection | None = None
    gateway: GatewaySection = GatewaySection()


def load_config(path: Path, insecure: bool = False) -> CentralConfig:
    """Read ``central.toml``; its relative paths are relative to its folder. ``insecure`` overrides the key of that
    name.

    Raises:
        ConfigError: The file is missing or invalid.
    """
    config = _read(path, CentralConfig)
    base = path.resolve().parent
    if insecure:
        config = config.model_copy(update={"central": config.central.model_copy(update={"insecure": True})})
    _check_security(path, config.central)
    _check_page(path, config.central)
    _check_metrics(path, config.central)
    central = config.central.model_copy(
        update={
            "data_dir": base / config.central.data_dir,
            "keys": config.central.keys and base / config.central.keys,
            "log": config.central.log and base / config.central.log,
            "page_token_file": config.central.page_token_file and base / config.central.page_token_file,
        }
    )
    models = [ModelSection(bundle=base / m.bundle, decoder=base / m.decoder) for m in config.model]
    if config.gateway:
        _check_own_gateway(path, config.central, config.gateway)
    return config.model_copy(update={"central": central, "model": models})


def load_gateway(path: Path, ports: list[str], tcp: str | None, insecure: bool) -> GatewaySection:
    """Read the settings of a separate gateway; ``ports`` and ``tcp`` override the file.

    ``centre`` and ``keys`` default to those of [central] in the same file.

    Raises:
        ConfigError: The file is missing or invalid.
    """
    file = _read(path, _GatewayFile)
    own, central, base = file.gateway, file.central, path.resolve().parent
    centre, keys = own.centre, own.keys
    if central:
        # A centre that listens on every address is reached by loopback.
        centre = centre or re.sub(r"//(\*|0\.0\.0\.0|\[::\]):", "//127.0.0.1:", central.listen)
        keys = keys or central.keys
    insecure = insecure or own.insecure or bool(central and central.insecure)
    if not centre or centre.endswith(":*"):
        raise ConfigError(f"{path}: gateway.centre: missing; expected the centre's tcp://address:port")
    if insecure and keys:
        raise ConfigError(f"{path}: gateway: keys and insecure exclude each other; remove one")
    if not insecure and not keys:
        raise ConfigError(
            f"{path}: gateway.keys: missing; copy the folder with {own.name} that `epic keys new {own.name}` made "
            "at the centre, or, for a trial on this machine alone, set insecure = true"
        )
    section = own.model_copy(
        update={
            "ports": ports or own.ports,
            "tcp": tcp or own.tcp,
            "centre": centre,
            "keys": keys and base / keys,
            "insecure": insecure,
            "log": own.log and base / own.log,
        }
    )
    if not section.ports and not section.tcp:
        raise ConfigError(f"{path}: gateway: no line to serve; give --port /dev/tty... or --tcp host:port")
    if insecure and not is_loopback(centre):
        raise ConfigError(
            f"{path}: gateway.insecure: only to a centre on this machine, not {centre}; "
            f"make keys with `epic keys new {own.name}`"
        )
    if insecure:
        _check_insecure_tcp(path, section)
    return section


_SECTIONS: dict[str, type[BaseModel]] = {
    "central": CentralSection,
    "model": ModelSection,
    "gateway": GatewaySection,
    "retention": RetentionSection,
    "fetch": FetchSection,
    "line": LineSection,
}
_File = TypeVar("_File", bound=BaseModel)


def _read(path: Path, model: type[_File]) -> _File:
    try:
        text = path.read_text()
        content = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give --config, set EPIC_CONFIG, or make one "
            "with: epic central init"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML ({error})") from None
    known = {name: list(section.model_fields) for name, section in _SECTIONS.items()}
    known["central"] += OLD_NAMES
    if unknown := find_unknown(text, content, known):
        raise ConfigError(f"{path}: {unknown}")
    if isinstance(content.get("model"), dict):
        raise ConfigError(
            f"{path}: line {line_of(text, 'model', '')}: expected [[model]], found [model]; write two brackets, as "
            "there may be several models"
        )
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        given = "" if "got" in message else f", got {first['input']!r}"
        problem = "required, and missing" if first["type"] == "missing" else f"{message}{given}"
        raise ConfigError(f"{path}: {place}: {problem}") from None


def _check_own_gateway(path: Path, central: CentralSection, gateway: GatewaySection) -> None:
    """Check that a centre's own [gateway] has the centre's keys, or is insecure like the centre."""
    for key in ("centre", "keys", "insecure"):
        if getattr(gateway, key):
            raise ConfigError(
                f"{path}: gateway.{key}: for a gateway on its own; in a centre, [central] sets it. Remove it"
            )
    if central.insecure:
        _check_insecure_tcp(path, gateway)


def _check_insecure_tcp(path: Path, gateway: GatewaySection) -> None:
    if gateway.tcp and not is_loopback(gateway.tcp):
        raise ConfigError(
            f"{path}: gateway.tcp: without keys only on loopback (127.0.0.1:port), not on {gateway.tcp}, where "
            "anybody could send; make keys with `epic keys new`"
        )


def _check_security(path: Path, central: CentralSection) -> None:
    if central.insecure and central.keys:
        raise ConfigError(f"{path}: central: keys and insecure exclude each other; remove one")
    if not central.insecure and not central.keys:
        raise ConfigError(
            f"{path}: central.keys: missing; make the centre's and the devices' keys with `epic keys new`, or, "
            "for a trial on this machine alone, set insecure = true"
        )
    if central.insecure and not is_loopback(central.listen):
        raise ConfigError(
            f"{path}: central.insecure: only on loopback (tcp://127.0.0.1:port), not on {central.listen}, "
            "where anybody could send; make keys with `epic keys new`"
        )


def with_page(path: Path, central: CentralSection, address: str) -> CentralSection:
    """Return ``central`` with its page at ``address``.

    Raises:
        ConfigError: The address is not valid.
    """
    match = re.fullmatch(r".+:(\d{1,5})", address)
    if not match or int(match[1]) > 0xFFFF:
        raise ConfigError(f"--listen: expected HOST:PORT with a port of at most {0xFFFF}, got {address!r}")
    moved = central.model_copy(update={"page_listen": address})
    _check_page(path, moved)
    return moved


def _check_page(path: Path, central: CentralSection) -> None:
    if central.page_token and central.page_token_file:
        raise ConfigError(f"{path}: central: page_token and page_token_file exclude each other; remove one")
    token = central.page_token or central.page_token_file
    if central.page_listen and not token and not is_loopback(central.page_listen):
        raise ConfigError(
            f"{path}: central.page_listen: without page_token or page_token_file only on loopback (127.0.0.1:8080), "
            f"not on {central.page_listen}, where anybody could look"
        )


def _check_metrics(path: Path, central: CentralSection) -> None:
    if central.metrics_listen and not is_loopback(central.metrics_listen):
        raise ConfigError(
            f"{path}: central.metrics_listen: only on loopback (127.0.0.1:9108), not on "
            f"{central.metrics_listen}, where anybody could look; put a proxy with a password before it"
        )
