"""What states hold in RocksDB, each kind its way."""
