"""The one training loop: steps, micro-batches, validation, resuming, the record of a run."""
