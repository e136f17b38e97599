"""`streamactors doctor`: what is wrong here, and what to do about it. Looks only; what it writes, it removes."""
