"""Turn latents into maps: assemble events, decode them, record the provenance."""
