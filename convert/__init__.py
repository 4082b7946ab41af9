"""Convert trained Keras weights to a verified int8 bundle that fits a device's budget."""
