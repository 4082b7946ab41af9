"""Encode latents at a rate as in ``protocol/rate.py``, with integers and fixed buffers."""


def rates_of(latent, prefixes):
    """Return (bytes, values, bits) of each rate of a model, the whole latent first.

    Raises:
        ValueError: The rates are not valid.
    """
    rates = [(latent, latent, 8), ((latent + 1) // 2, latent, 4)]
    for values, bits in prefixes:
        if bits not in (8, 4) or not 0 < values < latent:
            raise ValueError("prefixes: %d values of %d bits" % (values, bits))
        rates.append(((values * bits + 7) // 8, values, bits))
    return rates


def pack_into(latent, rate, out, at):
    """Write ``latent``, bytes of int8, into ``out`` from ``at`` on; return the number of bytes."""
    size, values, bits = rate
    if bits == 8:
        for i in range(size):
            out[at + i] = latent[i]
        return size
    for i in range(size):
        byte = latent[2 * i] & 0xF0
        if 2 * i + 1 < values:
            byte |= latent[2 * i + 1] >> 4
        out[at + i] = byte
    return size
