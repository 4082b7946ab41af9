"""Build the ``Device`` of a configuration; imported once the encoder's memory is reserved."""

import machine

from firmware_py.micropython.boot_counter import former_boot, next_boot
from firmware_py.micropython.bundle import BundleError
from firmware_py.micropython.clock import Clock
from firmware_py.micropython.compand import Compander
from firmware_py.micropython.config import ConfigError, host_and_port, read_secret
from firmware_py.micropython.device import Device
from firmware_py.micropython.errors import SetupError
from firmware_py.micropython.health import Health
from firmware_py.micropython.runtime import open_model
from firmware_py.micropython.safe_mode import NoModel, NoSource, Starts
from firmware_py.micropython.source import Replay
from firmware_py.micropython.spool import MAX_RECORD_BYTES, Spool, SpoolError
from firmware_py.micropython.store import open_store
from firmware_py.micropython.uart import Uart, open_line
from firmware_py.micropython.window import Window
from firmware_py.micropython.wire import MAX_FRAME_BYTES, OFFER_BYTES
from firmware_py.protocol import packet
from firmware_py.protocol.frame_authenticator import DOWNLINK, UPLINK, Crc, Mac


def assemble(config, feed, slots, bundle, memory):
    """The ``Device``, and whether it is in safe mode: without its source and model.

    Args:
        config: A whole ``device.json``.
        feed: Resets the watchdog.
        slots: The slots of the bundle.
        bundle: The bundle in use.
        memory: The encoder's buffers, as ``runtime.reserve`` returns them.

    Raises:
        SetupError: Something that the configuration names is missing or wrong.
        OSError: The hardware's errors.
    """
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
    spool = open_spool(config)
    # Before all that may fail, so that a failure is counted.
    starts = Starts(spool)
    boot = next_boot(max(spool.last_boot, former_boot()), Clock().set_s())
    starts.begin(boot)
    try:
        return _device(config, feed, slots, bundle, memory, spool, starts), starts.safe
    except SetupError:
        raise
    except Exception as error:
        starts.failed(error)
        raise


def _device(config, feed, slots, bundle, memory, spool, starts):
    clock = Clock()
    model = NoModel(bundle.latent) if starts.safe else slots.load(open_model, bundle, memory, feed)
    receivers = bundle.receivers[config["device"]]
    seals = (Crc(), Crc())
    if config["secret"]:
        secret = read_secret(config["secret"])
        seals = (Mac(secret, UPLINK), Mac(secret, DOWNLINK))
    header = packet.Record(
        packet.LATENT, config["device"], config["survey"], spool.last_boot, 0, model_hash=bundle.model_hash
    )
    link = config["link"]
    device = Device(
        header,
        seals,
        Compander(bundle, receivers, model.input),
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
    device.failed = starts.failed
    if config["update"]["key"]:
        device.updater = _updater(config, slots, header, bundle, feed)
    interval_s = config["health"]["interval_s"]
    board = config["board"] + (" (safe mode)" if starts.safe else "")
    device.health = Health(header, board, interval_s, spool.n, clock, device.status, spool.last_error)
    return device


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
