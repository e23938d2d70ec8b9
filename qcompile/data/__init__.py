"""Where calibration and evaluation data come from: folders, arrays, images, scripts."""
