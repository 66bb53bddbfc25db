"""What is read and written: model folders, tokenizers, data sets, the state of a run."""

from pathlib import Path

WEIGHTS = (
    Path(__file__).resolve().parents[2] / "weights"
)  # the embedded model, and what the hub gave
