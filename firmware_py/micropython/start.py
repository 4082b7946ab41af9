"""From ``device.json`` to a running device; a board's ``main.py`` calls ``start()`` and nothing else."""

import time

import machine

from firmware_py.micropython.boot_counter import NoClockError, former_boot, next_boot
from firmware_py.micropython.bundle import BundleError, load_bundle
from firmware_py.micropython.clock import Clock
from firmware_py.micropython.compand import Compander, RecordingError
from firmware_py.micropython.config import ConfigError, host_and_port, load_config, read_secret
from firmware_py.micropython.device import Device
from firmware_py.micropython.health import Health
from firmware_py.micropython.model import ModelError
from firmware_py.micropython.runtime import open_model
from firmware_py.micropython.safe_mode import FAILED_STARTS, TRY_AGAIN_S, NoModel, NoSource, Starts
from firmware_py.micropython.slots import Slots
from firmware_py.micropython.source import Replay
from firmware_py.micropython.spool import MAX_RECORD_BYTES, OwnerError, Spool, SpoolError
from firmware_py.micropython.store import open_store
from firmware_py.micropython.uart import Uart, open_line
from firmware_py.micropython.window import Window
from firmware_py.micropython.wire import MAX_FRAME_BYTES, OFFER_BYTES
from firmware_py.protocol import packet
from firmware_py.protocol.frame_authenticator import DOWNLINK, UPLINK, Crc, Mac

# Watchdog timeout, longer than one encoder run; a stalled loop is restarted.
WATCHDOG_MS = 8000
# Delay before a restart, so that a person can stop a repeatedly failing device at the prompt.
BEFORE_RESET_MS = 5000

# The device and the error line with which it stopped, for `epic board status` at the prompt.
running = None
stopped = None


def start(path="device.json"):
    """Run until power-off. A configuration error is printed and returns to the prompt; other errors restart."""
    global running, stopped
    watchdog = Watchdog()
    try:
        try:
            device, safe = build(load_config(path), watchdog.feed)
        except (ConfigError, BundleError, ModelError, RecordingError, OwnerError, NoClockError) as error:
            stopped = "epic: %s" % error
            print(stopped)
            return
        running = device
        watchdog.start()
        if safe:
            print("epic: %d starts have failed; nothing is recorded for %d s" % (FAILED_STARTS, TRY_AGAIN_S))
            device.run(TRY_AGAIN_S)
            machine.reset()
        device.run()
    except Exception as error:
        # A card or digitiser that is not ready yet, failing flash or lack of memory: the records are in the spool, and
        # a restart may help.
        stopped = "epic: %r; starting anew" % error
        print(stopped)
        time.sleep_ms(BEFORE_RESET_MS)
        machine.reset()


class Watchdog:
    """The board's watchdog, which cannot be stopped; started once the configuration is valid."""

    def __init__(self):
        self._timer = None

    def start(self):
        self._timer = machine.WDT(timeout=WATCHDOG_MS)

    def feed(self):
        if self._timer:
            self._timer.feed()


def build(config, feed):
    """The ``Device`` of a configuration, and whether it is in safe mode: without its source and model.

    Raises the errors that ``start`` names, and what the hardware raises.
    """
    slots = Slots(config["bundle"])
    slots.begin()
    bundle = _or_back(slots, load_bundle, slots.folder)
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
    clock = Clock()
    spool = open_spool(config)
    # Before all that may fail, so that a failure is counted.
    starts = Starts(spool)
    boot = next_boot(max(spool.last_boot, former_boot()), clock.set_s())
    starts.begin(boot)
    # Before the other buffers, because its own are the largest.
    model = NoModel(bundle.latent) if starts.safe else _or_back(slots, open_model, bundle, feed)
    receivers = bundle.receivers[config["device"]]
    seals = (Crc(), Crc())
    if config["secret"]:
        secret = read_secret(config["secret"])
        seals = (Mac(secret, UPLINK), Mac(secret, DOWNLINK))
    header = packet.Record(
        packet.LATENT, config["device"], config["survey"], boot, 0, model_hash=bundle.model_hash
    )
    link = config["link"]
    device = Device(
        header,
        seals,
        Compander(bundle, receivers),
        model,
        bundle.rates,
        NoSource()
        if starts.safe
        else open_source(config["source"], bundle, receivers, spool.last_event, feed),
        spool,
        Window(spool, link["window"], link["resend_ms"]),
        open_link(link, feed),
        clock,
        feed,
        OFFER_BYTES if config["update"]["key"] else MAX_FRAME_BYTES,
    )
    device.answered = starts.good
    if config["update"]["key"]:
        device.updater = _updater(config, slots, header, bundle, feed)
    interval_s = config["health"]["interval_s"]
    board = config["board"] + (" (safe mode)" if starts.safe else "")
    device.health = Health(header, board, interval_s, spool.n, clock, device.status)
    return device, starts.safe


def open_spool(config):
    """The spool of a configuration.

    Raises:
        ConfigError: The board has no medium of that kind.
        SpoolError: It cannot be used.
    """
    section = config["spool"]
    try:
        store = open_store(section)
    except OSError as error:
        raise SpoolError(
            "%s: cannot keep a spool there (%r); make room on the flash"
            % (section["path"] or section["kind"], error)
        ) from None
    return Spool(store, (config["device"], config["survey"]))


def _or_back(slots, load, *arguments):
    """What ``load`` returns; if it refuses the bundle in use, the board restarts with the one before, if there is one.

    So does an update that is refused on trial, and a bundle that was damaged since: the one before is its second copy.
    """
    try:
        return load(*arguments)
    except (BundleError, ModelError) as error:
        if not slots.has_former:
            raise
        print("update: version %d: %s" % (slots.version, error))
        slots.roll_back(str(error))
        machine.reset()


def _updater(config, slots, header, bundle, feed):
    # Imported only when needed, to save heap.
    from firmware_py.micropython.updates import Updater

    names = ["manifest.json"]
    for path in (bundle.encoder_path, bundle.compiled_path):
        if path:
            names.append(path.split("/")[-1])
    section = config["update"]
    key = read_secret(section["key"])
    return Updater(slots, header, key, config["board"], names, section["trial_s"], feed, machine.reset)


def open_link(link, feed):
    """The way to the centre of section ``link``. Raises ``ConfigError`` when the board has none of the kind."""
    if link["kind"] != "tcp":
        return Uart(open_line(link), feed)
    # Firmware for a serial line need not have sockets.
    try:
        from firmware_py.micropython.tcp import Tcp, Wifi
    except ImportError as error:
        raise ConfigError("link: no network on this board (%r)" % error) from None
    wifi = Wifi(link["ssid"], link["password"]) if link["ssid"] else None
    return Tcp(host_and_port(link), wifi, feed)


def open_source(section, bundle, receivers, position, feed):
    """Open the configured source; a replay resumes after event ``position``.

    Raises:
        ConfigError: The source is missing or invalid.
    """
    if section["kind"] == "replay":
        shape = (bundle.sources, bundle.samples, receivers)
        return Replay(section["path"], shape, section["step"], section["interval_ms"], position)
    try:
        module = __import__(section["name"])
        source = module.open_source(bundle.sources, bundle.samples, receivers)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            "source: expected a module %r with open_source (%r)" % (section["name"], error)
        ) from None
    if hasattr(source, "feed"):
        # It waits for the shots of an event itself, and counts events on.
        source.feed = feed
        source.event = position
    return source
