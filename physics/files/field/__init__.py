"""Formats of field recordings, and how their traces come onto the grid of a survey."""
