"""What a run is asked for: settings, configuration files, defaults, protocols, speedups, stop rules."""
