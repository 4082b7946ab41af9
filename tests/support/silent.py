"""``silent.py N PORT...``: N connections to each port of the loopback that say nothing, in a process of their own.

Half of those to the first port send ZeroMQ's greeting and nothing more. Says ``open`` when all are; at the end of
standard input, how many the other side has ended.
"""

import contextlib
import socket
import sys

from central.file_descriptors import raise_limit

# Signature, version, mechanism, as-server, filler.
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE" + bytes(15) + bytes(1) + bytes(31)

raise_limit()
peers = []
first, *others = (int(port) for port in sys.argv[2:])
for number in range(int(sys.argv[1])):
    for port in (first, *others):
        peers.append(socket.create_connection(("127.0.0.1", port), 60))
        if port == first and number % 2:
            peers[-1].sendall(GREETING)
print("open", flush=True)
sys.stdin.read()
away = 0
for peer in peers:
    peer.setblocking(False)
    try:
        while peer.recv(1 << 12):
            pass
        away += 1
    except BlockingIOError:
        pass
    except OSError:
        away += 1
    with contextlib.suppress(OSError):
        peer.close()
print(away, flush=True)
