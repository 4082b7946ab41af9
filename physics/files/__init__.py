"""File formats of gathers and surveys."""
