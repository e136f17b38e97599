"""What several workers bring, and what they cost: `make bench-ray`."""
