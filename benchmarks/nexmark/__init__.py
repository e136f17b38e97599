"""Nexmark: the events of an auction house, queries over them, and an oracle in SQL that says what must come out."""
