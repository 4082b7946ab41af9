"""Learning in the field: adapt the decoder to the survey that the centre serves."""
