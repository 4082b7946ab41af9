"""Set a device's rate, only to one that its active model was trained for."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from central.config import CentralConfig, ModelSection
from central.errors import CentralError
from central.fleet.device_views import DeviceView, devices
from central.fleet.rates import ALL, Key, keep_rate
from central.updates.rollout_store import RolloutStore, model_section
from firmware_py.inference.bundle import Bundle, load_bundle
from firmware_py.protocol.rate import RateError


class RateSettingError(CentralError, ValueError):
    """The device's model was not trained for this rate, or the device is unknown."""


def set_rate(config: CentralConfig, key: Key, latent_bytes: int) -> None:
    """Set the rate of one device or of ``ALL``.

    Raises:
        RateSettingError: An active model of these devices does not support the rate.
        BundleError: A bundle is damaged.
        StoreError: The database cannot be read or written.
    """
    data_dir = config.central.data_dir
    check_rate(_models(data_dir, config.model), devices(data_dir), key, latent_bytes)
    keep_rate(data_dir, key, latent_bytes)


def find_device(views: list[DeviceView], device: int, survey: int | None) -> Key:
    """Return the (survey, device) of a device number; a device not seen yet needs its survey."""
    if survey is not None:
        return (survey, device)
    found = [view.survey for view in views if view.device == device]
    if len(found) != 1:
        known = f"is of surveys {', '.join(map(str, found))}" if found else "has not reported yet"
        raise RateSettingError(f"rate: device {device} {known}; give its --survey as well")
    return (found[0], device)


def _models(data_dir: Path, configured: list[ModelSection]) -> dict[str, Bundle]:
    """Return the bundles of the configuration and of rollouts, by model hash."""
    with closing(RolloutStore(data_dir, create=True)) as store:
        rolled_out = [model_section(data_dir, rollout.version) for rollout in store.rollouts()]
    bundles = [load_bundle(section.bundle) for section in (*configured, *rolled_out)]
    return {bundle.model_hash.hex(): bundle for bundle in bundles}


def check_rate(models: dict[str, Bundle], views: list[DeviceView], key: Key, latent_bytes: int) -> None:
    """Raise ``RateSettingError`` unless the models of the devices in ``key`` all support the rate.

    If none of these devices was seen yet, every one of ``models`` must support it.
    """
    chosen = [view for view in views if key in (ALL, (view.survey, view.device))]
    at_work = {view.model_hash: view for view in chosen if view.model_hash in models}
    for model_hash, bundle in models.items():
        if at_work and model_hash not in at_work:
            continue
        try:
            bundle.coding.rate(latent_bytes)
        except RateError as error:
            view = at_work.get(model_hash)
            who = f"device {view.device} of survey {view.survey} runs" if view else "the centre has"
            advice = (
                "give one of these"
                if bundle.coding.prefixes
                else "give one of these, or roll out a model that was trained with --nested"
            )
            raise RateSettingError(f"rate: {who} {bundle.name} {model_hash}: {error}; {advice}") from None
