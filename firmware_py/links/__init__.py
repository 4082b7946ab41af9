"""Links to the centre and the ports they use."""
