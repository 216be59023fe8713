"""From settings to jobs: what has to be trained and attacked, in which order, and what it costs."""
