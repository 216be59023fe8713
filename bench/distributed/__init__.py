"""Training in several processes: the process group, torch.distributed, and commands from the main process."""
