"""Configuration, start-up and main loop of a device."""
