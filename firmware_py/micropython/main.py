# On a board this is /main.py, which runs at power-up.
from firmware_py.micropython.start import start

start()
