"""Whether measured robustness can be believed: signs of masked gradients."""
