"""One thread: the suite's networks are too small to gain from more, and bits do not depend on the machine's cores."""

import torch

torch.set_num_threads(1)
