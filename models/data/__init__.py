"""Training data: loading, simulation, augmentation, batches."""
