"""A decoder without a network, and records for it: for tests of the centre."""

from pathlib import Path

import numpy as np

from firmware_py.protocol import packet
from firmware_py.protocol.rate import Coding, Rate
from physics.acquisition import Acquisition

MODEL_HASH = bytes.fromhex("0123456789abcdef")
OTHER_HASH = bytes.fromhex("fedcba9876543210")
LATENT = 16
SURVEY = Acquisition.openfwi()


class FakeDecoder:
    """Velocity tells every device's latent: column d of the map is 2000 + its first value, 1500 if absent."""

    n_devices = SURVEY.n_devices
    latent = LATENT
    sha256 = "ab" * 32
    acquisition = SURVEY
    folder = Path("nowhere")
    adaptation = None
    prefixes: tuple[Rate, ...] = ()

    @property
    def coding(self):
        return Coding(self.latent, 0, self.prefixes)

    def decode_batch(self, latents_int8, present):
        drawn = [self.decode(*row) for row in zip(latents_int8, present, strict=True)]
        return tuple(np.stack(maps) for maps in zip(*drawn, strict=True))

    def ood_score(self, latents_int8, present, rates):
        return None

    def decode(self, latents_int8, present):
        velocity = np.full(SURVEY.map_shape, 1500.0, np.float32)
        for device in np.flatnonzero(present):
            velocity[0, :, device] = 2000.0 + latents_int8[device, 0]
        return velocity, np.full(SURVEY.map_shape, 100.0 * (5 - present.sum()) + 1.0, np.float32)


def latent_record(device=0, event=1, sequence=1, value=0, boot=1, survey=1, model_hash=MODEL_HASH, **fields):
    """A record whose latent is ``value`` throughout."""
    fields = {"sample_time_us": 1_700_000_000_000_000 + event, **fields}
    payload = fields.pop("payload", np.full(LATENT, value, np.int8).tobytes())
    return packet.Record(
        packet.LATENT, device, survey, boot, sequence, event, model_hash=model_hash, payload=payload, **fields
    )
