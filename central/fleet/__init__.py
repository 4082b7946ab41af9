"""The state of every device: registry, views, gaps, rates."""
