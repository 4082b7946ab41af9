"""From latents to maps: decoding, refinement, OOD score."""
