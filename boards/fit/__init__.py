"""Whether an encoder fits a board."""
