"""What is read and written: model folders, tokenizers, data sets, the state of a run."""

from pathlib import Path

# the embedded model, and what the hub gave; beside the package, so `pip install .` has it not
WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
