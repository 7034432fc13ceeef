"""One dataset family, one file: how to get it and how its raw files are to be read."""
