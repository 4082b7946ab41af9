"""``centre_process.py central.toml``: the centre as a process, all of it but the network that decodes.

It starts in a fraction of a second, so that it can be killed often. The latents' size and the number of devices
are those of the bundle in [[model]]; there is no decoder folder.
"""

import signal
import sys
from pathlib import Path

from fake_decoder import FakeDecoder

from central.config import load_config
from central.service import Service
from firmware_py.inference.bundle import load_bundle
from firmware_py.runtime.log import Log

config = load_config(Path(sys.argv[1]))
bundle = load_bundle(config.model[0].bundle)
decoder = FakeDecoder()
decoder.n_devices = len(bundle.manifest["acquisition"]["device_receivers"])
decoder.latent, decoder.prefixes = bundle.coding.latent, bundle.coding.prefixes
service = Service(config, {bundle.model_hash: decoder}, Log(config.central.log))
signal.signal(signal.SIGTERM, service.stop)
signal.signal(signal.SIGINT, service.stop)
service.run()
