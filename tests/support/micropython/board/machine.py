"""Stand-in for a board's ``machine``: the UART is the runner's serial line; nothing watches the watchdog."""


class UART:
    def __init__(self, port, baudrate, timeout, rxbuf):
        if port != 1:
            raise ValueError("UART(%d) doesn't exist" % port)
        try:
            self._file = open("/line", "r+b", buffering=0)
        except (OSError, TypeError):
            # Nothing is connected.
            return
        self.readinto = self._file.readinto
        self.write = self._file.write


class WDT:
    def __init__(self, timeout):
        self.fed = 0

    def feed(self):
        self.fed += 1


def reset():
    raise SystemExit("reset")
