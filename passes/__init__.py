"""Passes: each one act on the graph, named by its verb."""
