"""Keyed state: declarations, key groups, serializers, and the backends that hold it."""
