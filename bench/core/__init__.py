"""Ground that every room stands on: files, downloads, devices, memory, streams, progress."""
