"""Where checkpoints lie: local folders and object stores behind one contract."""
