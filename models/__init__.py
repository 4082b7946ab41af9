"""Networks: the device encoder, the fusion decoder, the centralised baseline, and their training."""
