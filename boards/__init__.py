"""Board profiles: what a device can carry, and how firmware gets onto it."""
