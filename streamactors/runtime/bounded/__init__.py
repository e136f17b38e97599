"""Bounded input (`execution="batch"`): keyed stages take all of it in, sort it, and go on key by key."""
