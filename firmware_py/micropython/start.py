"""From ``device.json`` to a running device; a board's ``main.py`` calls ``start()`` and nothing else."""

import time

import machine

from firmware_py.micropython.boot_counter import BOOT, NoClockError, next_boot
from firmware_py.micropython.bundle import BundleError, load_bundle
from firmware_py.micropython.clock import Clock
from firmware_py.micropython.compand import Compander, RecordingError
from firmware_py.micropython.config import ConfigError, load_config, read_secret
from firmware_py.micropython.device import Device
from firmware_py.micropython.health import Health
from firmware_py.micropython.model import Model, ModelError
from firmware_py.micropython.source import Replay
from firmware_py.micropython.spool import MAX_RECORD_BYTES, OwnerError, Spool
from firmware_py.micropython.uart import Uart, open_line
from firmware_py.micropython.window import Window
from firmware_py.protocol import packet
from firmware_py.protocol.frame_authenticator import DOWNLINK, UPLINK, Crc, Mac

# Longer than an encoder takes; a loop that stands still so long is started anew.
WATCHDOG_MS = 8000
# Time for somebody at the prompt to stop a device that fails again and again.
BEFORE_RESET_MS = 5000


def start(path="device.json"):
    """Run until the power goes. A fault of the configuration is said, and leaves the prompt; any other starts anew."""
    watchdog = Watchdog()
    try:
        try:
            device = build(load_config(path), watchdog.feed)
        except (ConfigError, BundleError, ModelError, RecordingError, OwnerError, NoClockError) as error:
            print("epic: %s" % error)
            return
        watchdog.start()
        device.run()
    except Exception as error:
        # A card or a digitiser that does not answer yet at power-up, flash that fails, memory that ran out: what
        # was recorded is in the spool, and a fresh start may help.
        print("epic: %r; starting anew" % error)
        time.sleep_ms(BEFORE_RESET_MS)
        machine.reset()


class Watchdog:
    """The board's, which cannot be stopped again: started once the configuration is known to be good."""

    def __init__(self):
        self._timer = None

    def start(self):
        self._timer = machine.WDT(timeout=WATCHDOG_MS)

    def feed(self):
        if self._timer:
            self._timer.feed()


def build(config, feed):
    """The ``Device`` of a configuration. Raises the errors that ``start`` names, and what the hardware raises."""
    bundle = load_bundle(config["bundle"])
    if bundle.latent + packet.HEADER_BYTES > MAX_RECORD_BYTES:
        raise BundleError(
            "%s: latents of %d bytes, expected at most %d"
            % (config["bundle"], bundle.latent, MAX_RECORD_BYTES - packet.HEADER_BYTES)
        )
    if config["device"] >= len(bundle.receivers):
        raise ConfigError(
            "device: expected 0 to %d, as in the bundle, got %d"
            % (len(bundle.receivers) - 1, config["device"])
        )
    receivers = bundle.receivers[config["device"]]
    seals = (Crc(), Crc())
    if config["secret"]:
        secret = read_secret(config["secret"])
        seals = (Mac(secret, UPLINK), Mac(secret, DOWNLINK))
    clock = Clock()
    section = config["spool"]
    spool = Spool(section["path"], section["records"], (config["device"], config["survey"]))
    boot = next_boot(BOOT, spool.last_boot, clock.set_s())
    header = packet.Record(
        packet.LATENT, config["device"], config["survey"], boot, 0, model_hash=bundle.model_hash
    )
    link = config["link"]
    device = Device(
        header,
        seals,
        Compander(bundle, receivers),
        Model(bundle),
        bundle.rates,
        open_source(config["source"], bundle, receivers, spool.last_event),
        spool,
        Window(spool, link["window"], link["resend_ms"]),
        Uart(open_line(link), feed),
        clock,
        feed,
    )
    interval_s = config["health"]["interval_s"]
    device.health = Health(header, config["board"], interval_s, spool.n, clock, device.status)
    return device


def open_source(section, bundle, receivers, position):
    """The configured source; a replay goes on after event ``position``. Raises ``ConfigError``."""
    if section["kind"] == "replay":
        shape = (bundle.sources, bundle.samples, receivers)
        return Replay(section["path"], shape, section["step"], section["interval_ms"], position)
    try:
        module = __import__(section["name"])
        return module.open_source(bundle.sources, bundle.samples, receivers)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            "source: expected a module %r with open_source (%r)" % (section["name"], error)
        ) from None
