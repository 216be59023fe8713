"""Several processes that work together: the process group, control, DistributedDataParallel."""
