"""Plug-ins of any kind: registries, sketches read without importing, ranges of settings."""
