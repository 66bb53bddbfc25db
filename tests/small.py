"""A model of a few thousand parameters, every kind of token, and rollouts of five positions."""

from types import SimpleNamespace

import torch

from minisoft.draws import Draws
from minisoft.io.config import read_config
from minisoft.kinds import make_kind
from minisoft.model import Transformer
from minisoft.rollout import ANSWER, COT, FORCED, Rollout
from minisoft.soft import Categorical

V, D = 12, 16
PROMPT = [1, 2, 3, 4]
ROLES = [COT, COT, COT, FORCED, ANSWER]
KINDS = {name: make_kind(name, 0.2) for name in ("hard", "soft", "fuzzy")}
KINDS |= {noise: make_kind("soft", 0.2, noise=noise) for noise in ("hidden", "logits")}
KINDS["top-k"] = make_kind("soft", 0.2, noise="logits", top_k=3)
KINDS |= {name: make_kind(name) for name in ("multiplex", "covariance", "gumbel")}
CONFIG = {"model_type": "llama", "vocab_size": V, "hidden_size": D, "intermediate_size": 24}
CONFIG |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
FORM = SimpleNamespace(  # token 0 ends a CoT, of which at most half end so
    prefill=[[7], [8, 7]], cot_ends=lambda ids: ids[-1] == 0, answer_ends=lambda ids: True
)


class Embedding:
    """The part of a model that a kind needs."""

    def __init__(self, V=11, d=6, seed=0):
        self.E = torch.randn(V, d, generator=torch.Generator().manual_seed(seed))

    def mix(self, p):
        return p @ self.E

    def embed(self, ids):
        return self.E[ids]


class Fixed:
    """Draws that a test gives."""

    def __init__(self, noise):
        self.noise = noise

    def uniform(self):
        return self.noise

    def normal(self, n):
        assert self.noise.shape[-1] == n
        return self.noise


def small_model(tied=True, scale=0.35):
    torch.manual_seed(0)
    model = Transformer(read_config({**CONFIG, "tie_word_embeddings": tied}))
    for p in model.parameters():
        if p.dim() == 2:
            torch.nn.init.normal_(p, std=scale)
    torch.nn.init.normal_(model.E, std=0.6)
    return model


def unroll(model, kind, n, generator):
    """n rows with roles ROLES, position by position -> Rollout."""
    last, prompt = model.run_prompt(torch.tensor([PROMPT]))
    hidden, x = last[:, -1].expand(n, -1), torch.empty(n, 0, D)
    keys = torch.randint(2**62, (n,), generator=generator)
    ids, actions, scores = [], [], []
    for t, role in enumerate(ROLES):
        logits, draws = model.logits(hidden), Draws(keys, torch.full((n,), t))
        if role == COT:
            distribution = kind.distribution(model, hidden, logits)
            action = distribution.sample(draws)
            actions.append(action)
            scores.append(distribution.log_prob(action))
            ids.append(kind.shadow(model, action, logits))
            new = kind.embed(model, action)
        else:
            words = Categorical(logits)
            token = torch.full((n,), 7) if role == FORCED else words.sample(draws)
            scores.append(words.log_prob(token) * (role == ANSWER))
            ids.append(token)
            new = model.embed(token)
        x = torch.cat((x, new[:, None]), 1)
        hidden = model(x, prompt)[:, -1]
    return Rollout(
        PROMPT,
        range(n),
        keys,
        truncated=torch.zeros(n, dtype=torch.bool),
        ids=torch.stack(ids, 1),
        role=torch.tensor(ROLES, dtype=torch.int8).expand(n, -1).clone(),
        actions=torch.stack(actions, 1).detach(),
        log_prob=torch.stack(scores, 1).detach(),
        measures=torch.zeros(n, len(ROLES), 3),
    )


def gradient(model):
    """The gradients of all parameters, flat; the model has none afterwards."""
    whole = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    return whole


def mismatch_of(by, model, kind, record):
    """The Mismatch of all rows of a Rollout, without a gradient."""
    mismatch = by.backward(model, kind, [record], [torch.zeros(len(record.ids))], 1.0)
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    return mismatch
