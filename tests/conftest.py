"""What every test runs under."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tests are many and small

import hypothesis
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("twotower", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("twotower")
