"""Names for plug-ins of any kind, read without importing them."""
