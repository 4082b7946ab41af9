"""Run a device on MicroPython, with packet.py and frame_authenticator.py of ``protocol``."""
