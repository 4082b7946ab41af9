"""``python -m firmware_py run --config node.toml``: the device.

Exit codes: 0 stopped or drained; 2 the configuration, bundle, runtime, spool or recordings are at fault;
3 the centre refused records.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from pathlib import Path

from firmware_py.errors import FirmwareError
from firmware_py.protocol.printable import printable, printable_lines
from firmware_py.runtime.check import check
from firmware_py.runtime.config import NodeConfig, load_config
from firmware_py.runtime.node import Node
from firmware_py.runtime.run import run_device

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main(arguments: list[str] | None = None) -> int:
    """Run the device's command line; returns the exit code. A declared error is one line on stderr."""
    # Before the loop runs there is nothing to finish; afterwards `Node.stop` ends it in order.
    for number in SIGNALS:
        signal.signal(number, lambda *_: sys.exit(0))
    parser = argparse.ArgumentParser(prog="firmware_py", description="EPIC's device: record, encode, send.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("run", "record and send until stopped"),
        ("check", "try the configuration, the bundle and the source, and send nothing"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument(
            "--config", type=Path, default=Path("node.toml"), help="by default node.toml in this folder"
        )
        command.add_argument("--json", action="store_true", help="report as one JSON object")
    given = parser.parse_args(arguments)
    try:
        config = load_config(given.config)
        return _check(config, given.json) if given.command == "check" else _run(config, given.json)
    except FirmwareError as error:
        _complain(str(error))
        return 2


def _complain(message: str) -> None:
    """Print one line, whatever a library or the centre put into its message."""
    print("error:", printable_lines(" ".join(message.split())), file=sys.stderr)


def _check(config: NodeConfig, as_json: bool) -> int:
    found = check(config)
    if as_json:
        print(json.dumps(found))
    else:
        print(
            f"device {found['device']}: {found['bundle']} {found['model_hash']}, "
            f"{len(found['receivers'])} receivers to {found['latent_bytes']} bytes "
            f"in {found['encode_s'] * 1000:.2f} ms, ready"
        )
    return 0


def _run(config: NodeConfig, as_json: bool) -> int:
    asked_to_stop = threading.Event()

    def stop_on_signals(node: Node) -> None:
        def stop(*_: object) -> None:
            asked_to_stop.set()
            node.stop()

        for number in SIGNALS:
            signal.signal(number, stop)
        # A signal between the node before an update and the one after it.
        if asked_to_stop.is_set():
            node.stop()

    node, statistics = run_device(config, stop_on_signals)
    if as_json:
        print(json.dumps(statistics))
    else:
        print(
            f"device {statistics['device']}: {statistics['recorded']} recorded, "
            f"{statistics['acknowledged']} acknowledged, {statistics['waiting']} waiting, "
            f"{statistics['dropped']} dropped; {statistics['bytes_sent']} bytes sent, "
            f"{statistics['bytes_received']} received"
        )
    if node.refused:
        _complain(
            f"the centre refused {node.refused} of this device's records: {printable(' '.join(node.refusal.split()))}"
        )
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
