"""What report.json says beyond the verdict: the graph, tensors, weights, errors by depth, time, samples."""
