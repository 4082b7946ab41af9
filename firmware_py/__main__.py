"""``python -m firmware_py run --config node.toml``: the device.

Exit codes: 0 stopped or drained; 2 the configuration, bundle, runtime, spool or recordings are at fault;
3 the centre refused records.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from firmware_py.bundle import BundleError
from firmware_py.compand import GatherError
from firmware_py.config import ConfigError, load_config
from firmware_py.encoder import EncoderError
from firmware_py.link import LinkError
from firmware_py.node import Node, RefusedError
from firmware_py.spool import SpoolError

ERRORS = (BundleError, ConfigError, EncoderError, GatherError, LinkError, SpoolError)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="firmware_py", description="EPIC's device: record, encode, send.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("run", "record and send until stopped"),
        ("check", "load the configuration and the bundle, and say what they are"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--config", type=Path, required=True, help="node.toml")
    given = parser.parse_args(arguments)
    try:
        node = Node(load_config(given.config))
        if given.command == "check":
            print(
                f"device {node.config.node.device}: {node.bundle.name} {node.bundle.model_hash.hex()}, ready"
            )
            return 0
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signal_number, node.stop)
        node.run()
    except ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RefusedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
