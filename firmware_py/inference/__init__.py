"""The bundle, companding and the int8 encoder."""
