"""Install a device on a board."""
