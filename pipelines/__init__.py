"""The pipeline: compile it, run it here, submit it to a cluster."""
