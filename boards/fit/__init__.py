"""Check whether an encoder fits a board."""
