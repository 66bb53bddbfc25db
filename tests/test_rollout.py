"""Rollouts: where a CoT and an answer end, what is prefilled, what is recorded, and what decides the draws."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch.utils._python_dispatch import TorchDispatchMode

import minisoft
from minisoft import data
from minisoft.io import datasets
from minisoft.io.checkpoint import WEIGHTS
from minisoft.io.tokenizer import Tokenizer
from minisoft.model import PromptCache
from minisoft.reinforce import Mismatch, measure_mismatch
from minisoft.rollout import (
    ANSWER,
    COT,
    FORCED,
    PAD,
    Format,
    Request,
    _Batch,
    rollout,
    stream,
)
from minisoft.soft import make_kind, noise_scale, rms


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    model, tokenizer = minisoft.load(WEIGHTS / "tiny")
    problems = datasets.load_problems("tiny-test")[:6]
    prompts = [tokenizer.encode(data.prompt(p.question, "User: QUESTION Assistant:")) for p in problems]
    return SimpleNamespace(model=model, tokenizer=tokenizer, form=Format(tokenizer), prompts=prompts,
                           sigma=0.33 * rms(model.E))


def requests(tiny, problems, samples, step=0):
    return [Request(tiny.prompts[i], (0, step, i), samples) for i in problems]


def row_of(record, row):
    """Everything recorded of one row, padding cut off."""
    there = record.role[row] != PAD
    C = int((record.role[row] == COT).sum())
    return record.ids[row][there], record.role[row][there], record.actions[row, :C], record.log_prob[row][there]


def same(one, two, tolerance=1e-4):
    return (torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
            and torch.allclose(one[2].float(), two[2].float(), atol=tolerance)
            and torch.allclose(one[3], two[3], atol=1e-2))


KINDS = {"hard": ("hard", "embedding", None), "soft": ("soft", "embedding", None), "fuzzy": ("fuzzy", "embedding", None),
         "soft, hidden": ("soft", "hidden", None), "fuzzy, hidden": ("fuzzy", "hidden", None),
         "soft, logits": ("soft", "logits", None), "soft, top 5": ("soft", "logits", 5)}


def kind_of(tiny, name):
    token, noise, top_k = KINDS[name]
    return make_kind(token, 0.33 * noise_scale(tiny.model, noise), noise=noise, top_k=top_k)


@pytest.mark.parametrize("name", KINDS)
def test_replay_gives_the_log_probs_of_the_cached_rollout(tiny, name):
    kind = kind_of(tiny, name)
    for record in rollout(tiny.model, tiny.form, kind, requests(tiny, range(3), range(8)), 60):
        mismatch = Mismatch()
        measure_mismatch(tiny.model, kind, record, mismatch)
        assert mismatch.tokens > 8 * 10
        assert mismatch.total / mismatch.tokens < 1e-4
        assert mismatch.largest < 0.2  # fuzzy near a tie: the mean jumps between two embeddings


@pytest.mark.parametrize("name", KINDS)
def test_continuous_batching_changes_no_bit(tiny, name):
    """Places for 16 rows at most, of which 5 or 11 are used, fewer than there are rows; other orders of the problems."""
    kind, asked = kind_of(tiny, name), requests(tiny, range(6), range(4))
    whole = rollout(tiny.model, tiny.form, kind, asked, 40)
    for rows, order in ((5, [0, 1, 2, 3, 4, 5]), (11, [5, 3, 1, 0, 2, 4])):
        found = dict(zip(order, rollout(tiny.model, tiny.form, kind, [asked[i] for i in order], 40, rows=rows)))
        for i, record in enumerate(whole):
            for field in ("ids", "role", "actions", "log_prob", "entropy", "truncated"):
                assert torch.equal(getattr(found[i], field), getattr(record, field))


def test_records_come_when_their_last_row_is_done_and_without_actions_if_not_wanted(tiny):
    found = list(stream(tiny.model, tiny.form, make_kind("hard", 1.0), requests(tiny, range(6), range(2)), 40, rows=3,
                        record_actions=False))
    assert sorted(i for i, _ in found) == list(range(6)) and [i for i, _ in found][:3] != [3, 4, 5]
    assert all(record.actions is None and record.samples == range(2) and len(record.ids) == 2 for _, record in found)


@pytest.mark.parametrize("name", ["hard", "soft"])
def test_draws_depend_on_seed_step_problem_and_sample_alone(tiny, name):
    kind, roll = make_kind(name, tiny.sigma), lambda asked: rollout(tiny.model, tiny.form, kind, asked, 40)
    together = roll(requests(tiny, range(4), range(6)))
    alone = roll(requests(tiny, [2], range(6)))[0]
    part = roll(requests(tiny, [2, 0], range(3, 5)))[0]  # as another rank would do it
    for row in range(6):
        assert same(row_of(together[2], row), row_of(alone, row))
    for row in range(2):
        assert same(row_of(together[2], row + 3), row_of(part, row))
    other_step = roll(requests(tiny, [2], range(6), step=1))[0]
    assert not any(same(row_of(alone, row), row_of(other_step, row)) for row in range(6))
    assert not same(row_of(alone, 0), row_of(alone, 1))


def test_greedy_settings(tiny):
    ask = requests(tiny, range(6), range(1))
    roll = lambda name: rollout(tiny.model, tiny.form, make_kind(name, tiny.sigma), ask, 60, True, True)
    hard, fuzzy, again = roll("hard"), roll("fuzzy"), roll("fuzzy")
    for a, b, c in zip(hard, fuzzy, again):
        assert torch.equal(a.ids, b.ids)  # fuzzy greedy = hard greedy
        assert torch.equal(b.actions, c.actions)  # no noise


def test_greedy_text_is_transformers(tiny):
    """Hard-greedy, answer included, is what transformers generates from the same prompt."""
    import transformers
    reference = transformers.AutoModelForCausalLM.from_pretrained(WEIGHTS / "tiny", dtype=torch.float32)
    for record in rollout(tiny.model, tiny.form, make_kind("hard", 1.0), requests(tiny, range(4), range(1)), 60, True, True):
        assert not record.truncated.any()  # then the prefill is what the model itself would write
        ids = record.ids[0]
        made = reference.generate(torch.tensor([record.prompt]), max_new_tokens=len(ids), do_sample=False)
        assert made[0, len(record.prompt):].tolist() == ids.tolist()


def test_roles_come_in_order_and_prefills_are_the_papers(tiny):
    tokenizer = tiny.tokenizer
    for cot_tokens in (5, 60):
        records = rollout(tiny.model, tiny.form, make_kind("soft", tiny.sigma), requests(tiny, range(2), range(4)), cot_tokens)
        for record in records:
            for row in range(4):
                ids, role, _, score = row_of(record, row)
                assert role.tolist() == sorted(role.tolist())
                cot, fed = record.tokens(row, COT), tokenizer.decode(record.tokens(row, FORCED))
                text = tokenizer.decode(cot)
                assert text.count(data.STOP) == text.endswith(data.STOP)
                assert record.truncated[row] == (len(cot) == cot_tokens and not text.endswith(data.STOP))
                assert fed == (data.PREFILL_LATE if record.truncated[row] else data.PREFILL_EARLY)
                assert not score[role == FORCED].any() and score[role != FORCED].all()
                answer = record.tokens(row, ANSWER)
                assert 1 <= len(answer) <= 32
                assert tiny.form.answer_ends(answer) and not any(
                    tiny.form.answer_ends(answer[:n]) for n in range(1, len(answer)))
    assert records[0].truncated.sum() == 0  # with 60 tokens the model finishes by itself


class Script:
    """A stand-in for the model that writes given tokens: row r of a batch is the r-th script."""

    def __init__(self, scripts, V):
        self.scripts, self.V = scripts, V
        self.E = torch.zeros(V, 2)
        self.config = SimpleNamespace(hidden_size=2, vocab_size=V, num_hidden_layers=1, num_attention_heads=1,
                                      num_key_value_heads=1, head_dim=2)

    packed = staticmethod(nullcontext)

    def prefill(self, ids):
        key = torch.zeros(1, 1, ids.shape[1], 2)
        return torch.tensor([float(ids[0, 0]), 0.0]).expand(1, ids.shape[1], 2), PromptCache(keys=[key], values=[key])

    def embed(self, ids):
        return torch.zeros(*ids.shape, 2)

    def __call__(self, x, cache):
        owner = torch.tensor([owner or 0 for owner in cache.owner])
        return torch.stack((owner, cache.position + 1), -1).float()[:, None]

    def logits(self, hidden):
        found = torch.zeros(len(hidden), self.V)
        for row, (script, t) in enumerate(hidden.int().tolist()):
            script = self.scripts[script]
            found[row, script[min(t, len(script) - 1)]] = 100.0
        return found


def bpe(tmp_path, merges_from):
    """A byte-level BPE tokenizer whose merges were learned from the given text."""
    fast = Fast(models.BPE())
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), decoders.ByteLevel()
    fast.train_from_iterator(merges_from, trainers.BpeTrainer(
        vocab_size=256 + 80, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<eos>"]))
    fast.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<eos>"}')
    return Tokenizer(tmp_path)


TEXTS = ["5 apples: the final answer is: 5. The final answer is: 7} then", "The final answer is : no. The final answer is:",
         "What: is: it: The final answer is:x The final answer is: 3", "The final answer is", "::::The final answer is:::",
         "The final answeré is: The final answer is:\\frac{1}{2}} The final answer is:", "nothing but words " * 8]


@pytest.mark.parametrize("look", [1, 7])
@pytest.mark.parametrize("learned", [["xyz"], ["The final answer is: "] * 9, [" is: is: is:"] * 9, ["answer is:x} er is:::"] * 9,
                                     ["The final answer is:x The final answer is: \\boxed{"] * 20])
def test_stop_is_exact_however_the_phrase_is_tokenised(tmp_path, learned, look):
    """The CoT ends at the first token after which its text ends with the phrase, found by decoding after every token."""
    tokenizer = bpe(tmp_path, learned)
    scripts = [tokenizer.encode(text) for text in TEXTS]
    budget = 120
    asked = [Request([i], (0, 0, i), range(1)) for i in range(len(scripts))]
    records = rollout(Script(scripts, tokenizer.size), Format(tokenizer), make_kind("hard", 1.0), asked, budget, True, True,
                      look=look)
    for script, record in zip(scripts, records):
        full = [script[min(t, len(script) - 1)] for t in range(budget)]
        expected = next((n for n in range(1, budget + 1) if tokenizer.decode(full[:n]).endswith(data.STOP)), budget)
        assert record.tokens(0, COT) == full[:expected]
        assert bool(record.truncated[0]) == (not tokenizer.decode(full[:expected]).endswith(data.STOP))


@pytest.mark.parametrize("look", [1, 7])
@pytest.mark.parametrize("answer, kept", [("18} more", "18}"), ("\\{1, 2\\}} x", "\\{1, 2\\}}"), ("\\frac{1}{2}}", "\\frac{1}{2}}"),
                                          ("12<eos>34}", "12"), ("1" * 40, "1" * 32)])
def test_answer_ends_with_its_box_eos_or_32_tokens(tmp_path, answer, kept, look):
    tokenizer = bpe(tmp_path, ["xyz"])  # one character a token
    form = Format(tokenizer)
    script = tokenizer.encode(data.STOP) + [0] * len(form.prefill[0]) + tokenizer.encode(answer)
    record = rollout(Script([script], tokenizer.size), form, make_kind("hard", 1.0), [Request([0], (0, 0, 0), range(1))],
                     60, True, True, look=look)[0]
    assert form.answer_text(record.tokens(0, ANSWER)) == kept


@pytest.mark.parametrize("look", [3, 8])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_looking_at_the_text_less_often_changes_no_bit(tiny, kind, look):
    """Rows that ran past their stop phrase are set back; with 20 rows at once others take their places meanwhile."""
    kind = make_kind(kind, tiny.sigma)
    often, seldom = [rollout(tiny.model, tiny.form, kind, requests(tiny, range(4), range(12)), 40, rows=20, look=n)
                     for n in (1, look)]
    assert any(not r.truncated.all() for r in often)  # early ends
    for a, b in zip(often, seldom):
        for name in ("ids", "role", "actions", "log_prob", "entropy", "truncated"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("kind", [make_kind("hard", 0.1), make_kind("soft", 0.1), make_kind("soft", 0.1, noise="hidden"),
                                  make_kind("soft", 0.1, noise="logits", top_k=3)])
def test_a_step_needs_nothing_from_the_host(tiny, kind, greedy):
    """What a CUDA graph can record: no tensor's value reaches Python or decides a shape, and nothing comes from there."""
    batch = _Batch(tiny.model, tiny.form, kind, requests(tiny, [0, 1], range(4)), 20, greedy, greedy, None, True, 4)
    with torch.no_grad(), tiny.model.packed():
        batch.fill()
        batch.advance()
        with Operations() as seen:
            batch._step(True, True)
        with pytest.raises(AssertionError), seen:
            batch.ids[batch.ids > 0]
        with pytest.raises(AssertionError), seen:
            batch.ids[0, 0].item()
    assert "aten.bmm" in seen.names


class Operations(TorchDispatchMode):
    """Collects the names of the operations that run; those that wait for a device's values are errors."""

    WAIT = {"aten._local_scalar_dense", "aten.nonzero", "aten.lift_fresh", "aten.masked_select", "aten.equal"}

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function.overloadpacket)
        masks = "index" in name and any(getattr(i, "dtype", None) == torch.bool
                                        for i in (args[1] if isinstance(args[1], (list, tuple)) else ()))
        assert name not in self.WAIT and not masks, name
        self.names.add(name)
        return function(*args, **(kwargs or {}))
