"""Multiple choice as `minisoft.evaluation` defines it, every context run once.

All options of a question follow the same context, so a question is one row, a tree of depth one:

    inputs       context     | option 1             | option 2             | ... | padding
    sees         itself      | context and itself   | context and itself   |
    positions    0 ... C-1   | C, C+1, ...          | C, C+1, ...          |

Dimensions: Q questions in a batch, T inputs in a row, d width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from minisoft.data import Choice
from minisoft.engine.cache import RowCache
from minisoft.engine.replay import at_once
from minisoft.evaluation import describe_choice, encode_choice
from minisoft.model import Causal, Transformer
from minisoft.soft import Categorical


class Tree(Causal):
    """Attention inside rows that hold a context and its options.

    branch (Q, T): 0 in the context, n in the n-th option, -1 in the padding; rotary (Q, T): the
    position of each input.
    """

    def __init__(self, branch: torch.Tensor, rotary: torch.Tensor):
        self.rotary = rotary
        same = branch[:, None, :] == branch[:, :, None]
        self.seen = ((branch[:, None, :] == 0) | same).tril()[:, None]  # (Q, 1, T, T)

    def positions(self, x: torch.Tensor) -> torch.Tensor:
        return self.rotary  # (Q, T)

    def __call__(self, layer: int, q, k, v) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.seen, enable_gqa=True)


@dataclass(frozen=True)
class Question:
    """One question as T inputs, and where the log-probabilities of its options are read."""

    number: int
    choice: Choice
    inputs: list[tuple[int, int, int]]  # (T): token, branch (see Tree), position
    scored: list[list[tuple[int, int]]]  # of each option: (input that predicts it, scored token)


def score(
    model: Transformer, tokenizer, questions: list[tuple[int, Choice]], batch: int
) -> Iterator[tuple[int, dict]]:
    """Score (number, question) pairs, at most `batch` questions at once; yields (number, record)
    as batches finish, longest questions first: records of `evaluation.score_choice`.

    Only questions of equal padded length share a batch, so in float32 on CPU a record has the same
    bits whatever the batch and the other questions.  Raises InputError for a context without
    tokens.
    """
    of_length: dict[int, list[Question]] = {}
    for number, choice in questions:
        question = lay_out(tokenizer, number, choice)
        of_length.setdefault(len(question.inputs), []).append(question)
    for _, same_length in sorted(of_length.items(), reverse=True):
        for first in range(0, len(same_length), batch):
            some = same_length[first : first + batch]
            found = [iter(numbers) for numbers in log_probs(model, some)]
            for q in some:
                both = [
                    [[next(numbers) for _ in option] for option in q.scored] for numbers in found
                ]
                yield q.number, describe_choice(q.number, q.choice, *both)


def lay_out(tokenizer, number: int, choice: Choice) -> Question:
    """A question as one row.

    Where tokens differ before the context's end, since they reach over the seam, options share only
    the tokens up to there.  No option's last token is an input: nothing is predicted from it.
    """
    context, options = encode_choice(tokenizer, number, choice)
    limit = min(len(context), *(len(tokens) - 1 for tokens in options))
    differ = [t for t in range(limit) if len({tokens[t] for tokens in options}) > 1]
    shared = differ[0] if differ else limit
    inputs = [(token, 0, t) for t, token in enumerate(options[0][:shared])]
    scored = []
    for n, tokens in enumerate(options, 1):
        last = len(tokens) - 1
        start = min(len(context), last)
        places = [*range(shared), *range(len(inputs), len(inputs) + last - shared)]  # of its tokens
        scored.append([*zip(places[start - 1 :], tokens[start:], strict=True)])
        inputs += [(tokens[t], n, t) for t in range(shared, last)]
    inputs += [(0, -1, 0)] * (-len(inputs) % RowCache.BLOCK)
    return Question(number, choice, inputs, scored)


@torch.no_grad()
def log_probs(model: Transformer, questions: list[Question]) -> tuple[list[float], list[bool]]:
    """Questions of equal length -> the log-probability of each scored token of each option, in
    nats, and whether it is the most likely token there; both one after the other, with more behind.
    """
    device, T, block = model.E.device, len(questions[0].inputs), RowCache.BLOCK
    inputs = torch.tensor([question.inputs for question in questions], device=device)
    ids, branch, positions = inputs.unbind(2)  # each (Q, T)
    hidden = model(model.embed(ids), Tree(branch, positions)).flatten(0, 1)  # (Q T, d)
    scored = []  # (row of hidden, the token that it predicts), a multiple of `block`
    for q, question in enumerate(questions):
        for option in question.scored:
            scored += [(q * T + place, target) for place, target in option]
    scored = torch.tensor(scored + [(0, 0)] * (-len(scored) % block), device=device)
    scores, likeliest = [], []
    for places, targets in (some.T for some in scored.split(at_once(model, block))):
        logits = model.logits(hidden[places])  # exist for a chunk at a time
        scores += Categorical(logits).log_prob(targets).tolist()
        likeliest += (logits.argmax(-1) == targets).tolist()
    return scores, likeliest
