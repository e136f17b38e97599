"""Tables on the local disk behind a cache of decoded entries (rocksdict)."""
