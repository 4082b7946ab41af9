"""The device on a microcontroller: runs on MicroPython, with packet.py and seal.py of the folder above."""
