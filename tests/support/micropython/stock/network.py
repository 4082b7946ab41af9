"""Stand-in for ``network``: the access point is there while the file ``access-point`` is, and holds its password."""

STA_IF = 0


class WLAN:
    def __init__(self, interface):
        self._joined = False

    def active(self, on):
        pass

    def connect(self, ssid, password):
        self._joined = _password() == password

    def disconnect(self):
        self._joined = False

    def isconnected(self):
        self._joined = self._joined and _password() is not None
        return self._joined


def _password():
    try:
        with open("access-point") as file:
            return file.read()
    except OSError:
        return None
