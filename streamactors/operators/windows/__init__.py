"""Windows: what users see of them (`base`), what they hold (`contents`), how records go in and results come out
(`link`)."""
