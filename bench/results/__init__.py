"""Stored results: outcomes of every test sample, the results tree, published figures."""
