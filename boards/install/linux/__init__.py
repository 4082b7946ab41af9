"""Install on a Linux board."""
