"""One job over several processes: slices of its plan, channels and control between them, whatever starts them."""
