"""minisoft: train Llama and Qwen models to reason in soft tokens (arXiv 2509.19170).

The files of this folder are the paper ("Soft Tokens, Hard Truths"), in reading order: data, model,
draws, soft, rollout, reward, reinforce, evaluation.  The folders are other kinds of token in the
same frame, and the names of all (kinds), and what is only faster (engine), read and written (io),
decided (verifier), run on real machines (run) or measured (lab).
"""

import os

# OpenMP reads this once, when torch is imported.  Threads that wait for each other spin; where
# another program has one's core, all of them spin for nothing until it is given back.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & {*os.environ}:
    os.environ["GOMP_SPINCOUNT"] = "1000"


def load(folder, device="cpu", dtype=None):
    """A Hugging Face folder -> (Transformer, Tokenizer): see `minisoft.io.checkpoint.load`."""
    from minisoft.io import checkpoint

    return checkpoint.load(folder, device, dtype)
