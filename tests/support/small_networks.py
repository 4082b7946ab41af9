"""Networks of few layers under the names of released ones: a step is traced or compiled in a third of the time.

As a program it is `epic` with these networks: ``small_networks.py train ...``.
"""

import sys

import models.networks.encoder as encoders
import models.networks.fusion as fusion

# The latent of the encoder ``micro``, a residual block, and a stride along the receivers. The time of a trace goes by
# the number of layers, so the layers are as wide as those of the released networks, and learn as fast.
ENCODER = (64, 16, (encoders.Stage(24, (7, 3), (2, 1)), encoders.Stage(32, (3, 3), (2, 2), residuals=1)))
DECODER = {"self_layers": 1, "cross_layers": 1, "refine_layers": 1}

# Flags of XLA. A step compiles in less time and runs slower.
QUICK_COMPILATION = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def use_small_networks() -> None:
    """Replace the encoder ``micro`` and the decoder ``small`` in this process."""
    encoders.PRESETS["micro"] = ENCODER
    fusion.DECODERS["small"] = DECODER


if __name__ == "__main__":
    import epic

    use_small_networks()
    sys.exit(epic.main())
