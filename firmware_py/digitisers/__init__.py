"""Digitisers for microcontrollers: modules for `epic board install --digitiser`, which run on MicroPython."""
