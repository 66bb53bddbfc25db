"""Rollouts, by the definition and by the engine: where a CoT and an answer end, what is prefilled,
what decides the draws, what is recorded."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, pre_tokenizers, trainers

from minisoft import data, engine, rollout
from minisoft.data import Format
from minisoft.engine import decode
from minisoft.io.tokenizer import Tokenizer
from minisoft.kinds import make_kind
from minisoft.model import Prompt
from minisoft.rollout import ANSWER, COT, FORCED, PAD, Decoding, Request, Rollout, role_at

WAYS = {"plain": rollout.rollout, "engine": engine.rollout}
BY = pytest.mark.parametrize("roll", WAYS.values(), ids=WAYS)
LATE = {**WAYS, "ahead 7": partial(engine.rollout, ahead=7)}  # reads the text every 7 steps only
BY_ALL = pytest.mark.parametrize("roll", LATE.values(), ids=LATE)
GREEDY = partial(Decoding, greedy=True, greedy_answer=True)


def row_of(record, row):
    """Everything recorded of one row, padding cut off: (ids, role, actions, log_prob)."""
    there, C = record.role[row] != PAD, int((record.role[row] == COT).sum())
    ids, role, log_prob = (x[row][there] for x in (record.ids, record.role, record.log_prob))
    return ids, role, record.actions[row, :C], log_prob


def same(one, two):
    same_text = torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    same_actions = same_text and torch.allclose(one[2].float(), two[2].float(), atol=1e-4)
    return same_actions and torch.allclose(one[3], two[3], atol=1e-2)


@BY
@pytest.mark.parametrize("name", ["hard", "soft"])
def test_draws_depend_on_seed_step_problem_and_sample_alone(tiny, name, roll):
    def records(*of, **step):
        requests = tiny.requests(*of, **step)
        return roll(tiny.fast, tiny.form, tiny.kind(name), requests, Decoding(12))

    together = records(range(4), range(6))
    alone = records([2], range(6))[0]
    part = records([2, 0], range(3, 5))[0]  # as another rank would do it
    for row in range(6):
        assert same(row_of(together[2], row), row_of(alone, row))
    for row in range(2):
        assert same(row_of(together[2], row + 3), row_of(part, row))
    other_step = records([2], range(6), step=1)[0]
    assert not any(same(row_of(alone, row), row_of(other_step, row)) for row in range(6))
    assert not same(row_of(alone, 0), row_of(alone, 1))


@BY
@pytest.mark.parametrize("cot_tokens", [5, 60])
def test_roles_come_in_order_and_prefills_are_the_papers(tiny, cot_tokens, roll):
    tokenizer, requests = tiny.tokenizer, tiny.requests(range(2), range(4))
    records = roll(tiny.fast, tiny.form, tiny.kind("soft"), requests, Decoding(cot_tokens))
    for record in records:
        for row in range(4):
            ids, role, _, score = row_of(record, row)
            assert role.tolist() == sorted(role.tolist())
            cot, prefill = record.tokens(row, COT), tokenizer.decode(record.tokens(row, FORCED))
            text = tokenizer.decode(cot)
            stopped = data.STOP in text
            assert text.count(data.STOP) == stopped
            assert record.truncated[row] == (len(cot) == cot_tokens and not stopped)
            late = record.truncated[row]
            assert prefill == (data.PREFILL_LATE if late else data.PREFILL_EARLY)
            assert not score[role == FORCED].any() and score[role != FORCED].all()
            answer = record.tokens(row, ANSWER)
            assert 1 <= len(answer) <= 32
            ends = [tiny.form.answer_ends(answer[:n]) for n in range(1, len(answer) + 1)]
            assert ends == [False] * (len(answer) - 1) + [True]
    if cot_tokens == 60:
        assert records[0].truncated.sum() == 0  # then the model finishes by itself


def test_taken_actions_are_those_of_their_role_row_by_row():
    role = torch.tensor([[COT, COT, FORCED, ANSWER], [COT, FORCED, ANSWER, PAD]], dtype=torch.int8)
    ids, thoughts = torch.arange(8).view(2, 4), torch.arange(12.0).view(2, 2, 3)
    keys = torch.tensor([8, 9])
    record = Rollout([0], range(2), keys, None, ids, role, thoughts, None, None)
    assert record.taken(COT).tolist() == thoughts.flatten(0, 1)[:3].tolist()
    assert record.taken(ANSWER).tolist() == [3, 6]
    assert record.draws(COT).keys.tolist() == [8, 8, 9]
    assert record.draws(COT).positions.tolist() == [0, 1, 0]
    assert record.tokens(0, COT) == [0, 1] and record.tokens(1, FORCED) == [5]


def test_some_rows_of_a_rollout_are_a_rollout_of_their_length(rolled):
    for record in rolled("soft"):
        lengths = (record.role != PAD).sum(1)
        rows = lengths.argsort()[[2, 0]]
        part = record.select(rows)
        assert part.ids.shape == (2, lengths[rows].max())
        assert part.samples == [record.samples[row] for row in rows.tolist()]
        for row, whole in enumerate(rows.tolist()):
            assert same(row_of(part, row), row_of(record, whole))
        assert torch.equal(part.keys, record.keys[rows])
        assert torch.equal(part.truncated, record.truncated[rows])


def test_the_role_of_a_position_is_the_same_for_numbers_and_tensors():
    after_cot, prefilled = [-3, -1, 0, 1, 2, 3], [2, 2, 2, 2, 2, 0]
    expected = [COT, COT, FORCED, FORCED, ANSWER, ANSWER]
    assert [*map(role_at, after_cot, prefilled)] == expected
    assert role_at(torch.tensor(after_cot), torch.tensor(prefilled)).tolist() == expected


# ---------------------------------------------------------------- where CoT and answer end


class Script:
    """A stand-in for the model that writes given tokens: a prompt [r] is followed by the r-th
    script.  Its encodings are (r, position)."""

    model = SimpleNamespace(layers=[])  # for the engine to pack

    def __init__(self, scripts, V):
        self.scripts, self.V = scripts, V
        self.E = torch.zeros(V, 2)
        one = dict.fromkeys("num_hidden_layers num_attention_heads num_key_value_heads".split(), 1)
        self.config = SimpleNamespace(hidden_size=2, vocab_size=V, head_dim=2, **one)

    def embed(self, ids):
        return torch.stack((ids, torch.zeros_like(ids)), -1).float()

    def run_prompt(self, ids):
        key = torch.zeros(len(ids), 1, ids.shape[1], 2)
        return self(self.embed(ids)), Prompt((key,), (key,))

    def __call__(self, x):
        """Whole texts: the first input is the prompt."""
        rows, T = x.shape[:2]
        position = torch.arange(T).expand(rows, T)
        return torch.stack((x[:, :1, 0].expand(rows, T), position), -1).float()

    def one_position(self, x, cache):
        script = torch.tensor([number or 0 for number in cache.prompt_of])
        return torch.stack((script, cache.position + 1), -1).float()

    def logits(self, hidden):
        logits = torch.zeros(len(hidden), self.V)
        for row, (script, t) in enumerate(hidden.int().tolist()):
            script = self.scripts[script]
            logits[row, script[min(t, len(script) - 1)]] = 100.0
        return logits


@pytest.fixture
def scripted(monkeypatch):
    """The engine decodes Scripts."""
    monkeypatch.setattr(decode, "one_position", Script.one_position)


def bpe(tmp_path, merges_from):
    """A byte-level BPE tokenizer whose merges were learned from the given text."""
    fast = Fast(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    alphabet = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    trainer = trainers.BpeTrainer(vocab_size=256 + 80, special_tokens=["<eos>"], **alphabet)
    fast.train_from_iterator(merges_from, trainer)
    fast.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<eos>"}')
    return Tokenizer(tmp_path)


TEXTS = [
    "5 apples: the final answer is: 5. The final answer is: 7} then",
    "The final answer is : no. The final answer is:",
    "What: is: it: The final answer is:x The final answer is: 3",
    "The final answer is",
    "::::The final answer is:::",
    "The final answeré is: The final answer is:\\frac{1}{2}} The final answer is:",
    "nothing but words " * 8,
    "So 3.\nThe final answer is:\n\\boxed{3}",
    "The final answer is:é The final answer is: 3",
]
LEARNED = "xyz|The final answer is: | is: is: is:|answer is:x} er is:::|er is:\n\\boxed{| is:é is:é"
LEARNED += "|The final answer is:x The final answer is: \\boxed{"


@pytest.mark.usefixtures("scripted")
@BY_ALL
@pytest.mark.parametrize("learned", LEARNED.split("|"))
def test_stop_is_exact_however_the_phrase_is_tokenised(tmp_path, learned, roll):
    """The CoT ends at the first token after which its text has the phrase, found by decoding after
    every token; what this token holds behind the phrase, as ":\\n" does in the vocabularies of
    Llama 3 and Qwen, stays in the CoT.  The prefill is the paper's."""
    tokenizer, budget = bpe(tmp_path, [learned] * 20), 120
    scripts = [tokenizer.encode(text) for text in TEXTS]
    model, form = Script(scripts, tokenizer.size), Format(tokenizer)
    requests = [Request([i], (0, 0, i), range(1)) for i in range(len(scripts))]
    records = roll(model, form, make_kind("hard", 1.0), requests, GREEDY(budget))
    for script, record in zip(scripts, records):
        full = [script[min(t, len(script) - 1)] for t in range(budget)]
        ends = [data.STOP in tokenizer.decode(full[:n]) for n in range(1, budget + 1)]
        length = ends.index(True) + 1 if any(ends) else budget
        assert record.tokens(0, COT) == full[:length]
        assert bool(record.truncated[0]) == (not ends[length - 1])
        prefill = data.PREFILL_EARLY if ends[length - 1] else data.PREFILL_LATE
        assert tokenizer.decode(record.tokens(0, FORCED)) == prefill


ANSWERS = [("18} more", "18}"), (r"\{1, 2\}} x", r"\{1, 2\}}"), ("12<eos>34}", "12")]
ANSWERS += [(r"\frac{1}{2}}", r"\frac{1}{2}}"), ("1" * 40, "1" * 32)]


@pytest.mark.usefixtures("scripted")
@BY_ALL
@pytest.mark.parametrize("answer, kept", ANSWERS)
def test_answer_ends_with_its_box_eos_or_32_tokens(tmp_path, answer, kept, roll):
    tokenizer = bpe(tmp_path, ["xyz"])  # one character a token
    form = Format(tokenizer)
    prefill = [0] * len(form.prefill[0])
    script = tokenizer.encode(data.STOP) + prefill + tokenizer.encode(answer)
    requests = [Request([0], (0, 0, 0), range(1))]
    model, kind = Script([script], tokenizer.size), make_kind("hard", 1.0)
    [record] = roll(model, form, kind, requests, GREEDY(60))
    assert form.answer_text(record.tokens(0, ANSWER)) == kept
