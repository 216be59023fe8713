"""Running a plan: launcher, scheduler, worker processes, torchrun, checks before the start, display."""
