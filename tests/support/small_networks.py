"""Networks of few layers under the names of released ones: a step is traced or compiled in a third of the time.

As a program it is `epic` with these networks: ``small_networks.py train ...``.
"""

import sys

import models.networks.encoder as encoders
import models.networks.fusion as fusion
import models.networks.inversionnet as inversionnet

# The latent of the encoder ``micro``, a residual block, and a stride along the receivers. The time of a trace goes by
# the number of layers, so the layers are as wide as those of the released networks, and learn as fast.
ENCODER = (64, 16, (encoders.Stage(24, (7, 3), (2, 1)), encoders.Stage(32, (3, 3), (2, 2), residuals=1)))
# InversionNet with fewer channels. A short training of the released layout takes three times as long.
INVERSIONNET = inversionnet.Layout(
    (32, 64, 64, 128), (32, 32, 32), 64, ((64, 5, 0), (32, 4, 1), (16, 4, 1), (8, 4, 1), (8, 4, 1))
)
DECODER = {"self_layers": 1, "cross_layers": 1, "refine_layers": 1}

# Flags of XLA. A step compiles in less time and runs slower.
QUICK_COMPILATION = "--xla_backend_optimization_level=1 --xla_disable_hlo_passes=constant_folding"


def use_small_networks() -> None:
    """Replace the encoder ``micro`` and the decoder ``small`` in this process."""
    encoders.PRESETS["micro"] = ENCODER
    fusion.DECODERS["small"] = DECODER


if __name__ == "__main__":
    import epic

    use_small_networks()
    sys.exit(epic.main())
