"""Running a plan: checks before the start, scheduler, executors (this process, workers, torchrun), display."""
