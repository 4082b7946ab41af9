"""Read formats of field recordings and put their traces on the grid of a survey."""
