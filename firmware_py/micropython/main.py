# On a board this is /main.py, which runs at power-up. It fits in one sector, and restore.py has two copies.
for place in ("", "copy."):
    try:
        if __import__(place + "firmware_py.micropython.restore", None, None, ("whole",)).whole():
            from firmware_py.micropython.start import start

            start()
        break
    except Exception as error:
        reason = repr(error)
else:
    print("epic: %s; install again" % reason)
