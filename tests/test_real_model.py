"""Is a model of one's own computed as transformers computes it?  Ids, logits and greedy chains of
thought, in float32: `pytest --model FOLDER tests/test_real_model.py`."""

import gc
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from conftest import logits_of

from minisoft import data, engine
from minisoft.errors import InputError
from minisoft.io.prompts import CHAT, read_prompt
from minisoft.rollout import COT
from minisoft.run.policy import Policy, settings
from minisoft.run.settings import Flags

TOKENS = 64  # of a chain
TIE = 1e-3  # of two logits: rounding decides


@pytest.fixture(scope="module")
def folder(request):
    from minisoft.io import checkpoint

    given = request.config.getoption("--model")
    if given is None:
        pytest.skip("no --model")
    return checkpoint.find(given)


@pytest.fixture(scope="module")
def texts(folder):
    """Prompts: the paper's and, where the model has one, in its chat template."""
    templates = [data.PAPER_PROMPT]
    with suppress(InputError):
        templates.append(read_prompt(CHAT, folder))
    problems = data.load_problems("tiny-test")[:4]
    return [data.prompt(p.question, template) for template in templates for p in problems]


@pytest.fixture(scope="module")
def theirs(folder, texts):
    """[(ids, logits (S, V), greedy ids, distance of the two best logits at each)] of the texts;
    the model is gone by then, since two of half a billion numbers are many."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    options = {"max_new_tokens": TOKENS, "do_sample": False, "repetition_penalty": 1.0}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    found = []
    for text in texts:
        plain = not text.startswith(tokenizer.bos_token or "\0")  # a chat template writes it itself
        ids = tokenizer(text, add_special_tokens=plain, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(ids).logits[0]
        written = model.generate(ids, **options)
        best = torch.cat(written.logits).topk(2).values
        chain = written.sequences[0, ids.shape[1] :]
        found.append((ids[0].tolist(), logits, chain.tolist(), best[:, 0] - best[:, 1]))
    del model
    gc.collect()
    return found


@pytest.fixture(scope="module")
def ours(folder, theirs):
    return Policy.load(folder, "hard", settings(folder, ["hard"], Flags(), TOKENS), plain=True)


def test_ids_are_those_of_transformers(ours, texts, theirs):
    assert [ours.form.tokenizer.encode(text) for text in texts] == [ids for ids, *_ in theirs]


@torch.no_grad()
def test_logits_are_those_of_transformers(ours, theirs):
    for ids, expected, *_ in theirs:
        off = (logits_of(ours.model, torch.tensor([ids]))[0] - expected).abs().max()
        assert off <= 1e-4 * expected.abs().max()


def test_greedy_chains_are_those_of_transformers(ours, texts, theirs):
    """By the engine; a chain may part from theirs where the two best logits all but tie."""
    fast = replace(ours, model=engine.accelerate(ours.model), plain=False)
    fast = replace(fast, settings=replace(fast.settings, template="QUESTION"))
    requests = [fast.request(data.Problem(text, ""), (0,), range(1)) for text in texts]
    whole = 0
    for record, (*_, chain, distances) in zip(fast.rollout(requests, greedy=True), theirs):
        pairs = [*zip(record.tokens(0, COT), chain)]
        parted = [i for i, (own, their) in enumerate(pairs) if own != their]
        whole += not parted
        assert not parted or distances[parted[0]] < TIE
    assert whole > len(texts) // 2
