"""Export maps to files and pictures."""
