"""Run a device across all bundles that updates bring: the loop around ``Node``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from firmware_py.inference.bundle import Bundle, BundleError
from firmware_py.inference.encoder import EncoderError
from firmware_py.inference.self_test import self_test
from firmware_py.runtime.config import NodeConfig
from firmware_py.runtime.factory import check_same_survey, select_receivers
from firmware_py.runtime.health import CentreRequests, HealthHandler, HealthSettings, board_name
from firmware_py.runtime.node import Node
from firmware_py.runtime.recording_sender import RecordingSender
from firmware_py.updates.archive import read_verify_key
from firmware_py.updates.slots import Slots
from firmware_py.updates.updater import UpdatePolicy, Updater

# Chunk of an update or a recording on a serial line, which carries records too: question and answer take about 0.1 s at
# 115200 baud.
SERIAL_CHUNK_BYTES = 1024
CHUNK_BYTES = 4096


def run_device(config: NodeConfig, on_start: Callable[[Node], None]) -> tuple[Node, dict[str, Any]]:
    """Run until stopped or drained.

    ``on_start`` is called with each node before it runs, including after each update and roll-back.

    Returns:
        The last ``Node`` and its statistics.

    Raises:
        ArchiveError: The signing key is not valid.
        SlotsError: The slots cannot be used.
        FirmwareError: One of the errors of ``Node``.
    """
    if config.update is None:
        node = Node(config)
        node.handlers += [_recordings(config, node), _health(config, node, node.status)]
        on_start(node)
        return node, node.run()
    key = read_verify_key(config.update.key)
    policy = UpdatePolicy(key, config.update.board, _chunk_bytes(config), config.update.trial_s)
    slots = Slots(config.node.state_dir / "slots", config.node.bundle)
    try:
        while True:
            node, updater = _start(config, slots, policy)
            on_start(node)
            statistics = node.run()
            if not updater.restarting:
                return node, statistics
    finally:
        slots.close()


def _start(config: NodeConfig, slots: Slots, policy: UpdatePolicy) -> tuple[Node, Updater]:
    """Create a node on the bundle in use; roll back a bundle on trial that cannot start."""
    while True:
        folder = slots.start()
        try:
            node = Node(replace(config, node=replace(config.node, bundle=folder)))
            break
        except (BundleError, EncoderError) as error:
            if not slots.on_trial:
                raise
            slots.roll_back(str(error))

    def test(bundle: Bundle) -> None:
        check_same_survey(node.bundle, bundle)
        select_receivers(config, bundle)
        self_test(bundle, config.node.accelerator)

    updater = Updater(slots, policy, node.control_header, test, node.stop, node.log.write)

    def status() -> dict[str, Any]:
        update = updater.status()
        return {**node.status(), "update_version": update["version"], "update_state": update["state"]}

    node.handlers += [updater, _recordings(config, node), _health(config, node, status)]
    return node, updater


def _chunk_bytes(config: NodeConfig) -> int:
    return SERIAL_CHUNK_BYTES if config.link.kind == "serial" else CHUNK_BYTES


def _recordings(config: NodeConfig, node: Node) -> RecordingSender:
    return RecordingSender(
        node.control_header,
        node.source.find,
        node.selection.receivers,
        node.latents_waiting,
        _chunk_bytes(config),
        node.log.write,
    )


def _health(config: NodeConfig, node: Node, status: Callable[[], dict[str, Any]]) -> HealthHandler:
    return HealthHandler(
        node.control_header,
        HealthSettings(
            config.health.interval_s,
            (config.update and config.update.board) or board_name(),
            config.node.spool_records,
            config.node.state_dir,
        ),
        node.link.statistics,
        status,
        CentreRequests(node.set_rate, node.number_start, node.send_again),
        node.log.write,
    )
