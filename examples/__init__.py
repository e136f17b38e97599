"""One runnable file for each thing that streamactors is for; begin with `tour.py`."""
