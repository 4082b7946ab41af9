"""What a run folder's ``config.json`` says, and the networks and batches that are built of it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras

from firmware_py.inference.companding import Companding
from models.data.batches import DROP_OUT_SHARE, EpicBatches, InversionNetBatches
from models.data.gathers import ThinnedSet
from models.errors import TrainingError
from models.networks.encoder import EncoderConfig
from models.networks.federated import build_federated
from models.networks.fusion import DecoderConfig
from models.networks.inversionnet import LAYOUTS, build_inversionnet
from models.networks.network import build_network
from physics.acquisition import Acquisition
from physics.files.openfwi_files import find_pairs


@dataclass(frozen=True)
class RunConfig:
    """What a run folder's ``config.json`` holds."""

    kind: str
    data: list[str]
    acquisition: dict
    budget: dict
    thin: int
    companding: dict | None
    encoder: dict | None
    decoder: dict | None
    log_range: list[float] | None
    without: str | None = None
    # Of each family, where the samples are modelled on the accelerator: ``data`` then holds the first of them.
    simulated: int | None = None
    # ``data`` and ``simulated`` of what was learnt from before: by the runs that this one began with, or by itself.
    before: list[dict] = field(default_factory=list)

    def stages(self) -> list[dict]:
        """``data`` and ``simulated`` of all training that led to the run's networks."""
        own = {"data": self.data, "simulated": self.simulated}
        return [*(stage for stage in self.before if stage != own), own]


@contextlib.contextmanager
def computing_in(precision: str) -> Iterator[None]:
    """Networks built inside compute in ``precision``; their weights are float32 in any case."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def read_config(run: Path) -> RunConfig:
    """The configuration of a run folder. Raises ``TrainingError`` when it has none, or a damaged one."""
    path = run / "config.json"
    if not path.exists():
        raise TrainingError(f"{path}: not found; expected a run folder as `epic train` writes it")
    try:
        return RunConfig(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise TrainingError(f"{path}: not the configuration of a run ({error}); copy the run again") from None


def assemble(
    config: RunConfig,
    thinned: ThinnedSet,
    acquisition: Acquisition,
    quantised: bool = False,
    ordered: bool = False,
) -> tuple[keras.Model, Any, dict[str, keras.Model]]:
    """``(network, batches, parts to save by name)`` of a run's configuration; see ``models.networks.network`` for
    ``quantised`` and ``ordered``."""
    network, parts = build(config, acquisition, quantised, ordered)
    return network, feed(config, thinned, ordered), parts


def build(
    config: RunConfig, acquisition: Acquisition, quantised: bool = False, ordered: bool = False
) -> tuple[keras.Model, dict[str, keras.Model]]:
    """Network and parts of ``assemble``."""
    if config.kind in LAYOUTS:
        with _fitting():
            network = build_inversionnet(acquisition, LAYOUTS[config.kind])
        return network, {config.kind: network}
    if config.kind == "federated":
        with _fitting():
            network, local = build_federated(acquisition, acquisition.n_time // config.thin)
        return network, {"local": local}
    assert config.encoder and config.decoder
    network, encoder, decoder = build_network(
        acquisition,
        EncoderConfig.from_dict(config.encoder),
        DecoderConfig(**config.decoder),
        quantised,
        ordered,
    )
    return network, {"encoder": encoder, "decoder": decoder}


def feed(config: RunConfig, thinned: ThinnedSet, ordered: bool = False) -> Any:
    """Batches of ``assemble``; a centralised network's are read from the files of ``config.data``."""
    if config.kind in LAYOUTS:
        pairs = [pair for folder in config.data for pair in find_pairs(Path(folder), thinned.acquisition)]
        low, high = config.log_range or (0.0, 1.0)
        return InversionNetBatches(pairs, thinned, (low, high))
    assert config.companding
    companding = Companding.from_dict(config.companding)
    if config.kind == "federated":
        return EpicBatches(thinned, companding, drop_out_share=0.0)
    assert config.decoder
    latent = config.decoder["latent"] if ordered else None
    share = 0.0 if config.without == "drop-out" else DROP_OUT_SHARE
    return EpicBatches(thinned, companding, latent, share)


@contextlib.contextmanager
def _fitting() -> Iterator[None]:
    """A survey that a network cannot be built for is a ``TrainingError``."""
    try:
        yield
    except ValueError as error:
        raise TrainingError(str(error)) from None
