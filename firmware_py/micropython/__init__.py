"""The device on a microcontroller: runs on MicroPython, with packet.py and frame_authenticator.py of ``protocol``."""
