"""What every other room uses: files, downloads, devices, out-of-memory retries, random streams, progress."""
