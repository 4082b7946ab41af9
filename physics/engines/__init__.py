"""Forward-modelling engines."""
