"""`epic board install` of a tiny device, as a user types it."""

import epic


def install_arguments(parts, *more, board="generic-linux", endpoint="tcp://127.0.0.1:5999"):
    """``parts`` has ``bundle`` and the ``keys`` of device 0. Without --wait, a Linux board is not watched."""
    if "--host" in more and "--wait" not in more:
        more = (*more, "--wait", "0")
    return [
        *("board", "install", "--board", board, "--bundle", str(parts / "bundle"), "--device", "0"),
        *("--endpoint", endpoint, "--keys", str(parts / "keys"), *map(str, more)),
    ]


def install(parts, *more, **arguments):
    """Its exit code."""
    return epic.main(install_arguments(parts, *more, **arguments))
