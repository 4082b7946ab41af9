"""The format of ``encoder.epicnn``, which ``boards/fit/epicnn.py`` writes and ``model_viper.py`` runs."""

import struct

MAGIC = b"EPICNN1\0"
# Magic, SHA-256 of what follows, model hash, then layers, arena, weights, sums, factors, input offset, input length,
# output offset, latent length, golden vectors; sizes in bytes.
HEADER = "<8s32s8s10i"
HEADER_BYTES = struct.calcsize(HEADER)
HASHED_FROM = 40

# Fields of a layer's record, in this order; lengths in elements, zero points and limits as bytes q + 128.
FIELDS = (
    "operator",
    "source",
    "other",
    "target",
    "in_height",
    "in_width",
    "in_channels",
    "out_height",
    "out_width",
    "out_channels",
    "kernel_height",
    "kernel_width",
    "stride_height",
    "stride_width",
    "pad_top",
    "pad_left",
    "in_zero",
    "out_zero",
    "low",
    "high",
    "rounds_once",
    "multiplier_high",
    "multiplier_low",
    "shift",
    "blocks_24",
    "blocks_32",
    "blocks_40",
)
CONVOLUTION, DEPTHWISE, ADDITION = 0, 1, 2
