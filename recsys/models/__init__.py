"""One paper, one file; the file name is the model name on the command line."""
