"""Graphs as frozen data: what was built (`logical`), how it runs (`planner` → `physical`), both as text (`render`)."""
