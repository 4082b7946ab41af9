"""Create a device's parts from ``node.toml``: receivers, source and link."""

from __future__ import annotations

from collections.abc import Callable

from firmware_py.inference.bundle import Bundle, BundleError
from firmware_py.links.base import Link
from firmware_py.links.registry import LINKS
from firmware_py.runtime.config import NodeConfig
from firmware_py.sources.recordings import FileSource, FolderSource, Selection, say_nothing

# Entries of a survey that bound the map and do not describe the recording.
VELOCITY_BOUNDS = ("velocity_min_mps", "velocity_max_mps")


def select_receivers(config: NodeConfig, bundle: Bundle) -> Selection:
    """Return the receivers of the bundle's survey that this device records.

    Raises:
        BundleError: The manifest is incomplete, or the receivers do not fit the bundle.
    """
    try:
        survey = bundle.manifest["acquisition"]
        n_receivers = len(survey["receiver_cells"])
        shape = (len(survey["source_cells"]), int(survey["n_time"]), n_receivers)
        groups = [tuple(int(r) for r in group) for group in survey["device_receivers"]]
        if not all(groups):
            raise ValueError("a device without receivers")
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"{bundle.folder}: the manifest's acquisition is not whole ({error!r}); convert again"
        ) from None
    chosen = config.node.receivers
    if not chosen:
        if config.node.device >= len(groups):
            raise BundleError(
                f"{bundle.folder}: made for devices 0 to {len(groups) - 1}, this is device "
                f"{config.node.device}; give [node] receivers, or mend [node] device"
            )
        chosen = groups[config.node.device]
    elif len(chosen) == 2:
        if chosen[0] > chosen[1]:
            raise BundleError(f"[node] receivers: expected [first, last], got {list(chosen)}; swap them")
        chosen = tuple(range(chosen[0], chosen[1] + 1))
    outside = min(chosen) < 0 or max(chosen) >= n_receivers
    if outside or len(set(chosen)) < len(chosen) or len(chosen) > bundle.width:
        raise BundleError(
            f"[node] receivers: expected at most {bundle.width} of 0 to {n_receivers - 1}, each once, "
            f"got {len(chosen)} from {min(chosen)} to {max(chosen)}"
        )
    return Selection(shape, chosen)


def check_same_survey(current: Bundle, new: Bundle) -> None:
    """Check that an update takes the recordings that ``current`` takes. Raises ``BundleError``."""
    expected, found = current.manifest.get("acquisition"), new.manifest.get("acquisition")
    if not isinstance(expected, dict) or not isinstance(found, dict):
        return
    differing = sorted(
        name
        for name in expected.keys() | found.keys()
        if name not in VELOCITY_BOUNDS and expected.get(name) != found.get(name)
    )
    if differing:
        raise BundleError(
            f"made for another survey: {', '.join(differing)} differ from the model in use; train a model for "
            "this survey, or install this device again for the new one"
        )


def open_source(
    config: NodeConfig, selection: Selection, log: Callable[..., None] = say_nothing
) -> FileSource | FolderSource:
    """Open the configured source; a replay starts at its first event.

    Raises:
        GatherError: The source is missing or does not match.
    """
    source = config.source
    if source.kind == "files":
        return FileSource(list(source.paths), selection, source.interval_s, source.limit)
    return FolderSource(source.path, selection, source.poll_s, source.keep_free_mib, log)


def open_link(config: NodeConfig) -> Link:
    """Open the configured link, with keys unless configured as insecure.

    Raises:
        LinkError: The link cannot be set up as configured.
    """
    return LINKS[config.link.kind](config.link)
