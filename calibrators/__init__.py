"""Streaming observers and range estimators; they know arrays, not graphs."""
