"""The queries, written with the public API as a user would; `catalogue` names them."""
