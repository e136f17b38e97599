"""Dicts by key group."""
