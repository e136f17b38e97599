"""Values to bytes and back, and what a stored type may have become since."""
