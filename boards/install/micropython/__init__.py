"""Install on a microcontroller with MicroPython."""
