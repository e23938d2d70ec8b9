"""report.html: one file that shows report.json, without a network."""
