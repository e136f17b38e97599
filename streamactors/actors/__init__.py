"""Actors on asyncio: mailboxes, signals, fairness and supervision. Knows nothing of streams."""
