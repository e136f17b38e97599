"""Consistent checkpoints: the barrier protocols and the coordinator (pure decisions), the manifest (what a checkpoint
consists of), and the store: one flow's folder of checkpoints, on files that only `storage` touches."""
