"""Figures drawn from outcomes and training histories."""
