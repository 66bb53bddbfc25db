"""The estimator: advantages, replay, and a gradient that is the right one and depends on nothing but the problem."""

import pytest
import torch

from minisoft.engine.memory import (
    choose_micro_batch,
    gradient_bytes,
    position_bytes,
    standing,
)
from minisoft.io.config import read_config
from minisoft.lab.bench import peak_bytes
from minisoft.model import Config, PromptCache, Transformer
from minisoft.reinforce import (
    Mismatch,
    backward,
    encodings,
    leave_one_out,
    log_prob,
    measure_mismatch,
)
from minisoft.rollout import ANSWER, COT, FORCED, PAD, Rollout
from minisoft.soft import Categorical, make_kind

V, D = 12, 16
KINDS = {"hard": make_kind("hard", 0.2), "soft": make_kind("soft", 0.2), "fuzzy": make_kind("fuzzy", 0.2),
         "hidden": make_kind("soft", 0.2, noise="hidden"), "logits": make_kind("soft", 0.2, noise="logits"),
         "top-k": make_kind("soft", 0.2, noise="logits", top_k=3)}
ROLES = [COT, COT, COT, FORCED, ANSWER]


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def model(request):
    return small_model(request.param)


def small_model(tied=True, scale=0.35):
    torch.manual_seed(0)
    model = Transformer(read_config({
        "model_type": "llama", "vocab_size": V, "hidden_size": D, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": tied}))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=scale) if p.dim() == 2 else None
    torch.nn.init.normal_(model.E, std=0.6)
    return model


class Noise:
    """Draws from a generator, for n rows."""

    def __init__(self, generator, n):
        self.uniform = lambda: torch.rand(n, generator=generator)
        self.normal = lambda d: torch.randn(n, d, generator=generator)


def unroll(model, kind, prompt, n, generator):
    """n rows by the definition: no cache, the whole text run again at every position.  -> Rollout, with roles ROLES."""
    x = model.embed(torch.tensor([prompt])).expand(n, -1, -1)
    ids, actions, scores = [], [], []
    for role in ROLES:
        hidden = model(x)[:, -1]
        logits = model.logits(hidden)
        if role == COT:
            distribution = kind.distribution(model, hidden, logits)
            actions.append(distribution.sample(Noise(generator, n)))
            scores.append(distribution.log_prob(actions[-1]))
            ids.append(kind.shadow(model, actions[-1], logits))
            new = kind.embed(model, actions[-1][:, None])
        else:
            token = torch.full((n,), 7) if role == FORCED else Categorical(logits).sample(Noise(generator, n))
            scores.append(Categorical(logits).log_prob(token) * (role == ANSWER))
            ids.append(token)
            new = model.embed(token[:, None])
        x = torch.cat((x, new), 1)
    role = torch.tensor(ROLES, dtype=torch.int8).expand(n, -1).clone()
    return Rollout(prompt, range(n), torch.stack(ids, 1), role, torch.stack(actions, 1).detach(),
                   torch.stack(scores, 1).detach(), torch.zeros(n, 5), torch.zeros(n, dtype=torch.bool))


def reward_of(answer):
    """Any function of the answer token will do."""
    return torch.linspace(-1, 1, V)[(answer * 5) % V]


def gradient(model):
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    return found


def replay_gradient(model, kind, rollout, advantages, micro_batch=64, **how):
    model.zero_grad()
    backward(model, kind, rollout, advantages, 1 / len(advantages), micro_batch, Mismatch(), **how)
    return gradient(model)


def test_leave_one_out_is_the_reward_minus_the_mean_of_the_others():
    rewards = torch.tensor([[100., 10., 0., 10.], [10., 10., 10., 10.]])
    brute = torch.tensor([[r - (sum(row) - r) / 3 for r in row] for row in rewards.tolist()])
    torch.testing.assert_close(leave_one_out(rewards), brute)
    assert not leave_one_out(rewards)[1].any()
    with pytest.raises(ValueError, match="at least 2"):
        leave_one_out(torch.ones(3, 1))


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_replay_gives_back_every_log_prob_and_the_drawn_noise(model, name):
    kind = KINDS[name]
    record = unroll(model, kind, [1, 2, 3, 4], 8, torch.Generator().manual_seed(1))
    mismatch = Mismatch()
    measure_mismatch(model, kind, record, mismatch)
    assert mismatch.tokens == 8 * 4
    assert mismatch.largest < 1e-4
    assert record.log_prob[:, [0, 1, 2, 4]].abs().min() > 0  # the test compares something


@pytest.mark.parametrize("name", KINDS)
def test_gradient_is_that_of_the_loss_written_out(model, name):
    """Eq. 14 without prefix sharing, chunks or micro-batches: every row alone, the whole text in one pass."""
    kind = KINDS[name]
    record = unroll(model, kind, [1, 2, 3, 4], 6, torch.Generator().manual_seed(2))
    advantages = leave_one_out(torch.tensor([[100., 0., 10., 10., 100., 0.]]))[0]
    loss = 0.0
    for row in range(6):
        inputs = torch.cat((model.embed(torch.tensor([record.prompt])), kind.embed(model, record.actions[row][None]),
                            model.embed(record.ids[row, 3:][None])), 1)
        hidden = model(inputs)[0, 3:-1]
        logits = model.logits(hidden)
        l = kind.distribution(model, hidden[:3], logits[:3]).log_prob(record.actions[row]).sum()
        l = l + Categorical(logits[4:]).log_prob(record.ids[row, 4:]).sum()
        loss = loss - advantages[row] * l / 6
    loss.backward()
    expected = gradient(model)
    torch.testing.assert_close(replay_gradient(model, kind, record, advantages), expected, rtol=1e-4,
                               atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["hard", "soft", "hidden", "top-k"])
def test_gradient_does_not_depend_on_micro_batches_chunks_or_padding(model, name, monkeypatch):
    kind = KINDS[name]
    record = unroll(model, kind, [1, 2, 3, 4], 7, torch.Generator().manual_seed(3))
    advantages = torch.linspace(-2, 2, 7)
    whole = replay_gradient(model, kind, record, advantages)
    close = dict(rtol=1e-4, atol=2e-6 * whole.abs().max().item())
    torch.testing.assert_close(replay_gradient(model, kind, record, advantages, micro_batch=2), whole, **close)
    parts = replay_gradient(model, kind, record, advantages, terms=(COT,)) + replay_gradient(
        model, kind, record, advantages, terms=(ANSWER,))
    torch.testing.assert_close(parts, whole, **close)
    pad = lambda x: torch.nn.functional.pad(x, (0, 3))  # role 0 is PAD
    padded = Rollout(record.prompt, record.samples, pad(record.ids), pad(record.role), record.actions,
                     pad(record.log_prob), record.entropy, record.truncated)
    torch.testing.assert_close(replay_gradient(model, kind, padded, advantages), whole, **close)
    monkeypatch.setattr("minisoft.reinforce.LOGITS_AT_ONCE", V)  # one position at a time
    torch.testing.assert_close(replay_gradient(model, kind, record, advantages), whole, **close)


def test_rows_that_end_early_do_not_see_later_positions(model):
    kind = make_kind("soft", sigma=0.2)
    record = unroll(model, kind, [1, 2, 3, 4], 2, torch.Generator().manual_seed(4))
    cut = record.role.clone()
    cut[1, 3:] = PAD
    short = Rollout(record.prompt, record.samples, record.ids, cut, record.actions, record.log_prob, record.entropy,
                    record.truncated)
    hidden, cache = model.prefill(torch.tensor([record.prompt]))
    prompt = PromptCache(keys=cache.keys, values=cache.values)
    rows = torch.arange(2)
    found = log_prob(model, kind, short, rows, encodings(model, kind, short, rows, prompt, hidden[:, -1]))
    torch.testing.assert_close(found[1, :3], record.log_prob[1, :3], rtol=1e-4, atol=1e-4)
    assert not found[1, 3:].any()


def test_zero_advantages_send_no_gradient(model):
    kind = make_kind("soft", sigma=0.2)
    record = unroll(model, kind, [1, 2, 3, 4], 3, torch.Generator().manual_seed(5))
    some = replay_gradient(model, kind, record, torch.tensor([1., 0., -1.]))
    record.actions[1] += 100.0  # a row without advantage may be anything
    torch.testing.assert_close(replay_gradient(model, kind, record, torch.tensor([1., 0., -1.])), some)
    mismatch = Mismatch()
    backward(model, kind, record, torch.zeros(3), 1.0, 64, mismatch)
    assert mismatch.tokens == 0 and all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("name", [name for name in KINDS if name != "fuzzy"])
def test_gradient_agrees_with_finite_differences(name):
    model, kind = small_model(), KINDS[name]
    record = unroll(model, kind, [1, 2, 3, 4], 4, torch.Generator().manual_seed(6))
    advantages = torch.tensor([1., -1., 2., -2.])

    def loss():
        with torch.no_grad():
            hidden, cache = model.prefill(torch.tensor([record.prompt]))
            prompt = PromptCache(keys=cache.keys, values=cache.values)
            rows = torch.arange(4)
            l = log_prob(model, kind, record, rows, encodings(model, kind, record, rows, prompt, hidden[:, -1]))
            return -(advantages.double() * l.double().sum(1)).mean().item()

    found = replay_gradient(model, kind, record, advantages)
    vector = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    for seed in range(5):
        direction = torch.randn(vector.shape, generator=torch.Generator().manual_seed(seed))
        direction = direction / direction.norm() + found / found.norm()
        values = []
        for step in (2e-3, -2e-3):
            torch.nn.utils.vector_to_parameters(vector + step * direction, model.parameters())
            values.append(loss())
        torch.nn.utils.vector_to_parameters(vector, model.parameters())
        assert (values[0] - values[1]) / 4e-3 == pytest.approx((found @ direction).item(), rel=0.01)


def expected_reward(model, kind, prompt, n, generator, through_cot):
    """Mean over n noise draws of sum_a pi(a | h~) R(a), where h~ = h0 + sigma eps is differentiated through, or not."""
    x = model.embed(torch.tensor([prompt])).expand(n, -1, -1)
    for role in ROLES[:-1]:
        if role == COT:
            hidden = model(x)[:, -1]
            action = kind.distribution(model, hidden, model.logits(hidden)).sample(Noise(generator, n))
            new = kind.embed(model, (action if through_cot else action.detach())[:, None])
        else:
            new = model.embed(torch.full((n, 1), 7))
        x = torch.cat((x, new), 1)
    return (model.logits(model(x)[:, -1]).softmax(-1) * reward_of(torch.arange(V))).sum(-1).mean()


def reparameterised(model, kind, prompt, n, generator):
    """(what the CoT contributes, what the answer contributes) to the gradient of the expected reward."""
    parts, state = [], generator.get_state()
    for through_cot in (True, False):
        generator.set_state(state)
        expected_reward(model, kind, prompt, n, generator, through_cot).backward()
        parts.append(gradient(model))
    return parts[0] - parts[1], parts[1]


@pytest.mark.parametrize("noise, sigma", [("embedding", 1.2), pytest.param("hidden", 0.8, marks=pytest.mark.slow),
                                          pytest.param("logits", 1.2, marks=pytest.mark.slow)])
def test_reinforce_gradient_is_the_reparameterised_gradient(noise, sigma):
    """One expected reward differentiated in two ways that share nothing: the score function (REINFORCE, eq. 14) and
    back-propagation through the noise.  CoT and answer terms are compared one by one, along the direction of the exact
    gradient (taken from other draws), in units of the standard error, in all parameters and in each tensor."""
    model, kind, prompt, n = small_model(scale=0.3), make_kind("soft", sigma, noise=noise), [1, 2, 3, 4], 2048
    torch.nn.init.normal_(model.E, std=0.4)
    generator = torch.Generator().manual_seed(7)
    direction = [sum(parts) for parts in zip(*(reparameterised(model, kind, prompt, n, generator) for _ in range(8)))]
    exact, found = [], []
    for _ in range(24):
        exact.append(torch.stack(reparameterised(model, kind, prompt, n, generator)))
        with torch.no_grad():
            record = unroll(model, kind, prompt, n, generator)
        advantages = leave_one_out(reward_of(record.ids[:, -1])[None])[0]
        found.append(-torch.stack([replay_gradient(model, kind, record, advantages, n, terms=(term,))
                                   for term in (COT, ANSWER)]))
    exact, found = torch.stack(exact), torch.stack(found)  # (24, 2, parameters)
    ends = torch.tensor([p.numel() for p in model.parameters()]).cumsum(0).tolist()
    places = [slice(0, ends[-1]), *(slice(a, b) for a, b in zip([0, *ends], ends))]
    for part in (0, 1):
        for place in places:
            along = direction[part][place] / direction[part][place].norm()
            a, b = found[:, part, place] @ along, exact[:, part, place] @ along
            error = ((a.var() + b.var()) / len(a)).sqrt()
            assert abs(a.mean() - b.mean()) < 4 * error
            if place == places[0]:
                assert error < 0.1 * b.mean()  # so a term that is missing or scaled wrongly would be seen


def test_layers_computed_again_give_the_same_gradient(model):
    kind = make_kind("soft", sigma=0.2)
    record = unroll(model, kind, [1, 2, 3, 4], 5, torch.Generator().manual_seed(8))
    kept = replay_gradient(model, kind, record, torch.linspace(-2, 2, 5))
    model.recompute, runs = True, []
    model.model.layers[0].register_forward_pre_hook(lambda *_: runs.append(1))
    assert torch.equal(replay_gradient(model, kind, record, torch.linspace(-2, 2, 5)), kept)
    assert len(runs) == 1 + 2  # the prompt once, the rows twice


def wide_model(V, layers=2):
    torch.manual_seed(0)
    return Transformer(Config(V, 64, 160, layers, 4, 2, 16, 1e-5, 10000.0, {}, True, False, False, False, False))


def replay_peak(model, rows, C, name="soft"):
    """Peak bytes of a backward pass whose gradients exist already; C CoT tokens, 4 forced, 4 of the answer."""
    kind, V = make_kind(name, sigma=0.2), model.config.vocab_size
    S, draw = C + 8, torch.Generator().manual_seed(0)
    role = torch.tensor([COT] * C + [FORCED] * 4 + [ANSWER] * 4, dtype=torch.int8).expand(rows, S)
    ids = torch.randint(V, (rows, S), generator=draw)
    actions = ids[:, :C] if name == "hard" else torch.randn(rows, C, 64, generator=draw)
    record = Rollout([1, 2, 3], range(rows), ids, role, actions, torch.zeros(rows, S, dtype=torch.float64),
                     torch.zeros(rows, S), torch.zeros(rows, dtype=torch.bool))
    go = lambda: backward(model, kind, record, torch.ones(rows), 1.0, rows, Mismatch())
    go()
    return peak_bytes(go, torch.device("cpu"))


@pytest.mark.parametrize("name", ["hard", "soft"])
def test_memory_of_an_update_grows_with_rows_times_length_times_d_not_with_V(name):
    """V = 128,256: a few hundred logits at once and gradients of E, whatever the rows and the length."""
    model, V = wide_model(128256), 128256
    small, long, many = (replay_peak(model, rows, C, name) for rows, C in ((4, 60), (4, 120), (8, 120)))
    assert long - small < 0.1 * 4 * 4 * 60 * V and many - long < 0.1 * 4 * 4 * 128 * V  # a tenth of the float32 logits
    assert many < small + 1.5 * 8 * 128 * position_bytes(model)


def test_position_bytes_are_those_measured():
    model = wide_model(64, layers=10)
    grown = replay_peak(model, 16, 120) - replay_peak(model, 8, 120)
    assert 0.9 < grown / (8 * 128) / position_bytes(model, (3 + 128) / 128) < 1.1


def test_micro_batch_from_free_memory(model):
    row, state = 100 * position_bytes(model), sum(standing(model, 1).values()) + gradient_bytes(model, 1, "cpu")
    found = [choose_micro_batch(model, 100, state + free * row, 1, "cpu") for free in (100, 9, 2)]
    assert found == [(16, False), (4, False), (1, False)]
    assert choose_micro_batch(model, 100, state + 1.9 * row, 1, "cpu") == (1, True)
