"""A microcontroller's prompt over USB, by mpremote: files, questions to
``boards/install/micropython/on_mcu.py``, and a fresh start."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from boards.install.linux.shell import InstallError

HANDS = (Path(__file__).parent / "on_mcu.py").read_text(encoding="utf-8")
# Time for USB to come back after a reset, seconds.
GONE_S, BACK_S = 1.0, 20.0
RETRY_S = 0.5
# Timeout; writing a full flash of 16 MiB over the prompt at USB full speed takes minutes.
TIMEOUT_S = 600.0


class Prompt:
    """The board's prompt (REPL) on ``port``. The first command interrupts the running device; leaving ``with``
    restarts it.
    """

    def __init__(self, port: str) -> None:
        if shutil.which("mpremote") is None:
            raise InstallError(
                "--port needs the program mpremote; install it: pip install -e '.[micropython]'"
            )
        self.port = port
        self._interrupted = False
        self._starting_until_s = 0.0

    def __enter__(self) -> Prompt:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._interrupted:
            return
        try:
            self.reset()
        except InstallError:
            # Report the earlier error.
            if error is None:
                raise

    def ask(self, function: str, *arguments: Any) -> Any:
        """Call a function of ``boards/install/micropython/on_mcu.py`` on the board and return its answer.

        Raises:
            InstallError: The call failed.
        """
        return self._ask((), function, *arguments)

    def ask_as_it_is(self, function: str) -> Any:
        """Call a function without the soft reset, so that the interrupted program's memory can be read."""
        return self._ask(("resume",), function)

    def _ask(self, words: tuple[str, ...], function: str, *arguments: Any) -> Any:
        call = f"{function}({', '.join(repr(argument) for argument in arguments)})"
        said = self._mpremote(*words, "exec", f"{HANDS}\nprint('\\n' + json.dumps({call}))\n")
        try:
            return json.loads(said.strip().splitlines()[-1])
        except (IndexError, ValueError):
            raise InstallError(
                f"{self.port}: expected an answer in JSON, got {said[-80:]!r}; is MicroPython on the board?"
            ) from None

    def copy(self, files: dict[str, Path]) -> None:
        """Copy files to their paths on the board, in order. Raises ``InstallError``."""
        words: list[str] = []
        for path, source in files.items():
            words += [*(["+"] if words else []), "fs", "cp", str(source), f":{path}"]
        self._mpremote(*words)

    def set_clock(self) -> None:
        """Set the board's clock, if any, to this machine's UTC time.

        Raises:
            InstallError: The board does not answer.
        """
        now = datetime.now(UTC)
        self.ask("clock", [*now.timetuple()[:3], now.isoweekday(), *now.timetuple()[3:6], 0])

    def take_over(self) -> None:
        """Repeat the command until it is answered; the watchdog may restart the board at any time."""
        self._starting_until_s = time.monotonic() + BACK_S

    def reset(self) -> None:
        """Reset the board as after a power cut; the next command waits until it is back.

        Raises:
            InstallError: The board does not answer.
        """
        self._mpremote("reset")
        self._interrupted = False
        # The board needs 0.1 s to reset; an earlier command would prevent that.
        time.sleep(GONE_S)
        self._starting_until_s = time.monotonic() + BACK_S

    def _mpremote(self, *words: str) -> str:
        while True:
            self._interrupted = True
            try:
                done = subprocess.run(
                    ["mpremote", "connect", self.port, *words],
                    capture_output=True,
                    text=True,
                    errors="replace",
                    timeout=TIMEOUT_S,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise InstallError(
                    f"{self.port}: no answer within {TIMEOUT_S:.0f} s; unplug the board and run it again"
                ) from None
            if not done.returncode:
                self._starting_until_s = 0.0
                return done.stdout
            if time.monotonic() > self._starting_until_s:
                raise InstallError(self._explain(done.stdout + done.stderr))
            time.sleep(RETRY_S)

    def _explain(self, said: str) -> str:
        """Explain in one line why mpremote failed."""
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        reason = lines[-1].removeprefix("mpremote: ") if lines else "no message"
        if "failed to access" in said or "no device found" in said:
            return f"{self.port}: cannot be opened; check the cable, and close what else uses it ({reason})"
        if "could not enter raw repl" in said:
            return f"{self.port}: no prompt of MicroPython there; is it the board's USB port? ({reason})"
        return f"{self.port}: mpremote: {reason}; run the same command again, it goes on where it was"
