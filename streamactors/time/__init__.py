"""Event time: how sources tell it, and how far it has come."""
