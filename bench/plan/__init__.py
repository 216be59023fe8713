"""Plans of runs: jobs to train and to attack, their order, keys and cost."""
