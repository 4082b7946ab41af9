"""From trained Keras weights to a verified, budgeted int8 bundle for a device."""
