"""What is stored: outcomes of every sample, the results tree, published figures."""
