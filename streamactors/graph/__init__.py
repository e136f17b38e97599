"""Graphs as frozen data: what the user built (`logical`), how it runs (`planner` → `physical`), and both as text (`render`)."""
