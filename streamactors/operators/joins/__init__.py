"""Joins of two keyed streams in event time: by an interval, by a window, and as of a moment."""
