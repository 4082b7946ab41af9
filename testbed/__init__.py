"""Run five devices and a centre on one machine, with real processes and sockets."""
