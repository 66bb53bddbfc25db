"""Multiple choice: accuracy, and negative log-likelihood (NLL) of the right option per token.

An option is scored as the continuation of its context; tokens and normalisation are lm-evaluation-harness's.  All
options of a question follow the same context, so a question is one row, a tree of depth one:

    inputs       context     | option 1             | option 2             | ... | padding
    sees         itself      | context and itself   | context and itself   |
    positions    0 ... C-1   | C, C+1, ...          | C, C+1, ...          |

Dimensions: Q questions in a batch, T inputs in a row, S scored tokens in a batch, d width, V vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from minisoft.data import Choice
from minisoft.errors import InputError
from minisoft.model import Transformer
from minisoft.reinforce import LOGITS_AT_ONCE
from minisoft.soft import Categorical

ALIGNED = 16  # a row of a float32 matrix product on CPU has the same bits in any multiple of this many rows


class Tree:
    """Attention inside rows that hold a context and its options (an `attend` strategy of `Transformer.forward`).

    branch (Q, T): 0 in the context, n in the n-th option, -1 in the padding; positions (Q, T): rotary positions.
    """

    def __init__(self, branch: torch.Tensor, positions: torch.Tensor):
        self.rotary = positions
        related = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])  # (Q, T, T)
        self.seen = related.tril()[:, None]  # (Q, 1, T, T)

    def positions(self, x: torch.Tensor) -> torch.Tensor:
        return self.rotary  # (Q, T)

    def __call__(self, layer, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.seen, enable_gqa=True)


@dataclass(frozen=True)
class Row:
    """One question as T inputs, and where the log-probabilities of its options' tokens are read."""

    number: int
    choice: Choice
    ids: list[int]  # (T)
    branch: list[int]  # (T), see Tree
    positions: list[int]  # (T)
    places: list[list[int]]  # for each option, the inputs whose encodings predict its scored tokens
    targets: list[list[int]]  # for each option, its scored tokens


def score(model: Transformer, tokenizer, questions: list[tuple[int, Choice]], batch: int):
    """Score (number, question) pairs, at most `batch` questions at once; yields (number, record) as batches finish,
    longest questions first.  For the fields of a record see `describe`.

    Only questions of equal padded length share a batch, so in float32 on CPU a record has the same bits whatever the
    batch and the other questions.  Raises InputError for a context without tokens.
    """
    of_length: dict[int, list[Row]] = {}
    for number, choice in questions:
        row = make_row(tokenizer, number, choice)
        of_length.setdefault(len(row.ids), []).append(row)
    for _, rows in sorted(of_length.items(), reverse=True):
        for first in range(0, len(rows), batch):
            taken = rows[first: first + batch]
            yield from ((row.number, describe(row, found)) for row, found in zip(taken, log_probs(model, taken)))


def make_row(tokenizer, number: int, choice: Choice) -> Row:
    """Lay out a question.  Scored are the tokens of context + " " + option beyond as many as the context has alone (but
    at least the last); where tokens differ before that, since they reach over the seam, options share only the tokens
    up to there.  No option's last token is an input, since nothing is predicted from it."""
    context, options = encode(tokenizer, number, choice)
    limit = min(len(context), *(len(tokens) - 1 for tokens in options))
    shared = next((t for t in range(limit) if len({tokens[t] for tokens in options}) > 1), limit)
    ids, branch, positions = options[0][:shared], [0] * shared, list(range(shared))
    places, targets = [], []
    for n, tokens in enumerate(options, 1):
        start, last = min(len(context), len(tokens) - 1), len(tokens) - 1
        at = [*range(shared), *range(len(ids), len(ids) + last - shared)]  # token of the option -> input of the row
        places.append(at[start - 1: last])
        targets.append(tokens[start:])
        ids += tokens[shared:last]
        branch += [n] * (last - shared)
        positions += range(shared, last)
    padding = -len(ids) % ALIGNED
    return Row(number, choice, ids + [0] * padding, branch + [-1] * padding, positions + [0] * padding, places, targets)


def encode(tokenizer, number: int, choice: Choice) -> tuple[list[int], list[list[int]]]:
    """The tokens of the context alone, its spaces at the end left to the options, and of context + " " + option for
    each option; with BOS where the tokenizer adds one."""
    context = tokenizer.encode(choice.context.rstrip())
    options = [tokenizer.encode(f"{choice.context} {option}") for option in choice.options]
    if not context or min(map(len, options)) < 2:
        raise InputError(f"problem {number}: expected a context and options of at least one token each, "
                         f"found {choice.context!r:.60} and {choice.options!r:.60}")
    return context, options


@torch.no_grad()
def log_probs(model: Transformer, rows: list[Row]) -> list[list[list[float]]]:
    """Rows of equal length -> for each row and option the log-probability of each of its scored tokens, in nats."""
    device, T = model.E.device, len(rows[0].ids)
    ids, branch, positions = (torch.tensor([getattr(row, name) for row in rows], device=device)
                              for name in ("ids", "branch", "positions"))  # each (Q, T)
    hidden = model(model.embed(ids), Tree(branch, positions)).flatten(0, 1)  # (Q T, d)
    places = [q * T + place for q, row in enumerate(rows) for option in row.places for place in option]
    targets = [token for row in rows for option in row.targets for token in option]
    found = iter(_in_chunks(model, hidden, torch.tensor(places, device=device), torch.tensor(targets, device=device)))
    return [[[next(found) for _ in option] for option in row.targets] for row in rows]


def _in_chunks(model: Transformer, hidden, places, targets) -> list[float]:
    """Log-probabilities of the tokens targets (S,) given the encodings hidden[places], places (S,); logits exist for
    one chunk at a time, and every chunk is aligned."""
    S = len(targets)
    places, targets = F.pad(places, (0, -S % ALIGNED)), F.pad(targets, (0, -S % ALIGNED))
    chunk = max(LOGITS_AT_ONCE // model.config.vocab_size // ALIGNED, 1) * ALIGNED
    return torch.cat([Categorical(model.logits(hidden[p])).log_prob(t)
                      for p, t in zip(places.split(chunk), targets.split(chunk))])[:S].tolist()


def describe(row: Row, found: list[list[float]]) -> dict:
    """The log-probabilities of a question's tokens -> its record: `log_probs`, in nats, and `tokens` of each option;
    the option `picked` by log-probability, and `picked_norm` by log-probability per character of its text
    (lm-evaluation-harness's acc_norm); `answer`, the right option; `nll` of it, nats per token."""
    sums = [sum(option) for option in found]  # float64
    per_character = [total / len(text) for total, text in zip(sums, row.choice.options)]
    answer = row.choice.answer
    return {"problem": row.number, "log_probs": sums, "tokens": [len(option) for option in found],
            "picked": sums.index(max(sums)), "picked_norm": per_character.index(max(per_character)), "answer": answer,
            "nll": -sums[answer] / len(found[answer])}


def summarize(records: list[dict]) -> dict:
    """Records -> accuracy and accuracy_norm (fractions), and the mean over questions of nll (nats per token)."""
    mean = lambda values: sum(values) / len(records)
    return {"accuracy": mean(r["picked"] == r["answer"] for r in records),
            "accuracy_norm": mean(r["picked_norm"] == r["answer"] for r in records),
            "nll": mean(r["nll"] for r in records)}
