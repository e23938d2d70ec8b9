"""Runtimes: capability tables, lowering to each runtime, and sessions on the result."""
