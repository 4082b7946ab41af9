"""Check and refine stored maps by forward modelling."""
