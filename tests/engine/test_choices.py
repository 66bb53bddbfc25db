"""Options are scored as if each stood alone after its context, by the harness's formulas, whatever
the batch."""

import random

import conftest
import pytest
import torch
from conftest import SENTENCES

from minisoft import evaluation
from minisoft.data import Choice
from minisoft.engine import choices
from minisoft.errors import InputError
from minisoft.evaluation import summarize_choices
from minisoft.io.tokenizer import Tokenizer
from minisoft.model import Transformer

ARCHITECTURES = ["llama-gqa", "llama3-tied", "qwen2", "qwen3-tied"]
WORDS = " ".join(SENTENCES).split()


def text(number, words):
    return " ".join(random.Random(number).choices(WORDS, k=words))


def question(number, context, *lengths):
    options = tuple(text(f"{number}/{i}", n) for i, n in enumerate(lengths))
    return Choice(text(number, context), options, number % len(lengths))


QUESTIONS = [  # very different lengths, 2 to 5 options
    question(0, 20, 3, 1, 8, 4),
    question(1, 1, 1, 1),
    question(2, 80, 2, 40, 1, 9),
    question(3, 7, 5, 5, 5, 5, 5),
    question(4, 40, 1, 2, 1),
    Choice("First: add", ("3", "4", "x", "y"), 2),
    Choice("Mia has", ("12 apples", "12"), 1),
    Choice("12 + 7 =  ", ("19", "18."), 0),
    Choice("a:", (" two spaces", "one\n", "über 東京"), 1),
    *(question(n, 3 + n % 9, *[1 + (n + i) % 4 for i in range(2 + n % 3)]) for n in range(9, 60)),
]


def score(model, tokenizer, questions=QUESTIONS, batch=64):
    """The records in the order of the questions."""
    records = dict(choices.score(model, tokenizer, list(enumerate(questions)), batch))
    assert all(records[number]["problem"] == number for number in records)
    return [records[number] for number in range(len(questions))]


def close(numbers, expected, tolerance=1e-4):
    conftest.close(torch.tensor(numbers), torch.tensor(expected), tolerance)


def check_as_defined(model, tokenizer, questions, tolerance=1e-4):
    """The records, equal to those of the definition within rounding."""
    records = score(model, tokenizer, questions)
    for number, (choice, record) in enumerate(zip(questions, records)):
        expected = evaluation.score_choice(model, tokenizer, number, choice)
        assert record.keys() == expected.keys() and record["tokens"] == expected["tokens"]
        assert record["greedy"] == expected["greedy"]
        close(record["log_probs"], expected["log_probs"], tolerance)
        close(record["nll"], expected["nll"], tolerance)
    return records


@pytest.fixture(scope="module")
def llama(fast, tokenizer_folders):
    return fast("llama-gqa")[1], Tokenizer(tokenizer_folders["llama3"])


@pytest.fixture(scope="module")
def embedded(tiny):
    return tiny.fast, tiny.tokenizer


# ---------------------------------------------------------------- log-probabilities


TOKENIZERS = [*zip(ARCHITECTURES, "llama3 llama2_model qwen llama2_json".split())]


@pytest.mark.parametrize("architecture, tokenizer", TOKENIZERS)
def test_an_option_is_scored_as_if_it_stood_alone(fast, tokenizer_folders, architecture, tokenizer):
    model, tokenizer = fast(architecture)[1], Tokenizer(tokenizer_folders[tokenizer])
    records = check_as_defined(model, tokenizer, QUESTIONS, 3e-4)
    assert min(min(record["tokens"]) for record in records) > 0


@torch.no_grad()
def test_an_option_that_greedy_decoding_would_write_is_marked(embedded):
    model, tokenizer = embedded
    context = "User: Lea has 55 coins. Then 5 are sold. How many? Assistant:"
    ids = tokenizer.encode(context)
    for _ in range(3):
        hidden = model(model.embed(torch.tensor([ids])))
        ids.append(model.logits(hidden)[0, -1].argmax().item())
    greedy = tokenizer.decode(ids)[len(context) + 1 :]
    record = score(model, tokenizer, [Choice(context, (greedy, greedy[:-1] + "x", "9 - 9"), 0)])[0]
    assert record["greedy"] == [True, False, False]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_nll_is_the_loss_of_transformers(fast, tokenizer_folders, architecture):
    theirs, ours = fast(architecture)
    tokenizer = Tokenizer(tokenizer_folders["qwen" if "qwen" in architecture else "llama3"])
    for choice, record in zip(QUESTIONS[:20], score(ours, tokenizer, QUESTIONS[:20])):
        context = len(tokenizer.encode(choice.context.rstrip()))
        ids = torch.tensor([tokenizer.encode(choice.context + " " + choice.options[choice.answer])])
        labels = ids.clone()
        labels[:, :context] = -100
        close(record["nll"], theirs(ids, labels=labels).loss.item(), 1e-5)


@pytest.mark.parametrize("spaces", ["", "  ", "\n"])
def test_spaces_at_the_end_of_a_context_belong_to_the_options(llama, spaces):
    choice = Choice("Mia has" + spaces, ("12 apples", "7"), 0)
    bare = len(llama[1].encode("Mia has"))
    [record] = score(*llama, [choice])
    whole = [len(llama[1].encode(f"Mia has{spaces} {option}")) for option in choice.options]
    assert record["tokens"] == [length - bare for length in whole]


def test_a_row_shares_the_context_and_nothing_is_left_out(llama):
    for number, choice in enumerate(QUESTIONS):
        ids, branch, _ = zip(*choices.lay_out(llama[1], number, choice).inputs)
        context = llama[1].encode(choice.context.rstrip())
        size = branch.count(0)
        assert [*ids[:size]] == context[:size] and size >= len(context) - 1
        whole = [llama[1].encode(f"{choice.context} {option}") for option in choice.options]
        used = len(ids) - branch.count(-1)
        assert used == size + sum(len(tokens) - 1 - size for tokens in whole)
        assert len(ids) == (used + 15) // 16 * 16


# ---------------------------------------------------------------- tokens over the seam


class Pieces:
    """A tokenizer that always takes the longest of its pieces, else one character."""

    def __init__(self, *pieces, bos=()):
        self.pieces, self.bos = sorted(pieces, key=len, reverse=True), list(bos)

    def encode(self, text):
        ids = list(self.bos)
        while text:
            piece = next((p for p in self.pieces if text.startswith(p)), text[0])
            ids.append(100 + self.pieces.index(piece) if piece in self.pieces else ord(piece))
            text = text[len(piece) :]
        return ids


SEAMS = [  # pieces, context, options: how options branch, and how many of their tokens are scored
    ([" x", " y", " z"], "abc", "x y z", "000", [1, 1, 1]),  # one token is no input
    ([], "abc", "x yz", "000122", [2, 3]),  # a b c | _ x,  a b c | _ y z
    (["c x"], "abc", "x yz", "00222", [1, 3]),  # a b | c_x,  a b | c _ y z: of the first the last
    (["bc y"], "abc", "x yz", "01112", [2, 1]),  # a | b c _ x,  a | bc_y z
    (["c y", "c x"], "abc", "x yz", "002", [1, 1]),  # a b | c_x,  a b | c_y z
    (["bc", "c x"], "abc", "x yz", "00122", [2, 3]),  # a bc | _ x,  a bc | _ y z
    (["a x", "a y"], "a", "xz yz z", "1233", [1, 1, 2]),  # a_x z, a_y z, a _ z: none is shared
]


@pytest.mark.parametrize("pieces, context, options, branch, scored", SEAMS)
def test_tokens_that_reach_over_the_seam(fast, pieces, context, options, branch, scored):
    tokenizer, choice = Pieces(*pieces), Choice(context, tuple(options.split()), 0)
    row = choices.lay_out(tokenizer, 0, choice)
    assert [at for _, at, _ in row.inputs] == [*map(int, branch), *[-1] * (16 - len(branch))]
    assert [len(option) for option in row.scored] == scored
    check_as_defined(fast("qwen2")[1], tokenizer, [choice])


@pytest.mark.parametrize("bos", [[], [1]])
def test_the_last_token_is_scored_even_where_the_context_swallows_the_option(fast, bos):
    model, tokenizer = fast("qwen2")[1], Pieces("bc x", bos=bos)
    choice = Choice("abc", ("x", "y"), 0)  # a bc_x, shorter than a b c
    [record] = score(model, tokenizer, [choice])
    ids = torch.tensor([tokenizer.encode("abc x")])
    with torch.no_grad():
        logits = model.logits(model(model.embed(ids)))[0, -2].log_softmax(-1)
    assert record["tokens"] == [1, 2]
    close(record["log_probs"][0], logits[ids[0, -1]].item())


def test_an_option_that_is_the_beginning_of_another():
    tokenizer, choice = Pieces("bc x"), Choice("abc", ("x", "xy"), 0)  # a bc_x,  a bc_x y
    row = choices.lay_out(tokenizer, 0, choice)
    a, x, y = tokenizer.encode("abc xy")
    assert row.inputs[:2] == [(a, 0, 0), (x, 2, 1)] and row.scored == [[(0, x)], [(1, y)]]


@pytest.mark.parametrize("context", ["", " \n", "a"])
def test_what_cannot_be_predicted_is_refused(fast, context):
    choice = Choice(context, ("x", "y"), 0)
    with pytest.raises(InputError, match="problem 3: expected a context"):
        list(choices.score(fast("qwen2")[1], Pieces("a x"), [(3, choice)], 1))


# ---------------------------------------------------------------- whatever the batch


@pytest.mark.parametrize("name", ["llama", "embedded"])
def test_neither_the_batch_nor_small_chunks_of_logits_change_a_bit(name, request, monkeypatch):
    model, tokenizer = request.getfixturevalue(name)
    expected = score(model, tokenizer, batch=1)
    assert [score(model, tokenizer, batch=batch) for batch in (7, 64)] == [expected] * 2
    turned = [{**record, "problem": number} for number, record in enumerate(expected[::-1])]
    assert score(model, tokenizer, QUESTIONS[::-1], 5) == turned
    torch.set_num_threads(2)
    try:
        assert score(model, tokenizer, QUESTIONS[:12], 7) == expected[:12]
    finally:
        torch.set_num_threads(1)
    monkeypatch.setattr("minisoft.engine.replay.LOGITS_AT_ONCE", 1)
    assert score(model, tokenizer, batch=7) == expected


def test_results_come_as_batches_finish(llama, monkeypatch):
    sizes, forward = [], Transformer.forward

    def watched(self, x, attend):
        sizes.append((*x.shape, x.requires_grad))
        return forward(self, x, attend)

    monkeypatch.setattr(Transformer, "forward", watched)
    stream = choices.score(*llama, [(100 + n, choice) for n, choice in enumerate(QUESTIONS)], 5)
    number, record = next(stream)
    assert number == record["problem"] == 102 and len(sizes) == sizes[0][0] == 1  # the longest
    assert torch.is_grad_enabled() and not sizes[0][-1]
    assert sorted([number, *(n for n, _ in stream)]) == list(range(100, 100 + len(QUESTIONS)))
    lengths = [shape[1] for shape in sizes]
    assert lengths == sorted(lengths, reverse=True) and max(shape[0] for shape in sizes) == 5


def test_no_logits_of_all_positions(llama, monkeypatch):
    rows, model = [], type(llama[0])
    logits = model.logits

    def watched(self, hidden):
        rows.append(len(hidden))
        return logits(self, hidden)

    monkeypatch.setattr(model, "logits", watched)
    [record] = score(*llama, [QUESTIONS[2]])
    assert sum(rows) == (sum(record["tokens"]) + 15) // 16 * 16


# ---------------------------------------------------------------- accuracy


@torch.no_grad()
def harness(model, tokenizer, choice):
    """(acc, acc_norm) of one question as lm-evaluation-harness defines them, by transformers."""
    sums, characters = [], []
    for option in choice.options:
        ids = torch.tensor([tokenizer.encode(choice.context.rstrip() + " " + option)])
        continuation = ids.shape[1] - len(tokenizer.encode(choice.context.rstrip()))
        log_probs = model(ids).logits.log_softmax(-1)[0, -continuation - 1 : -1]
        sums.append(log_probs.gather(1, ids[0, -continuation:, None]).sum())
        characters.append(float(len(option)))
    sums = torch.stack(sums)
    best, best_norm = sums.argmax().item(), (sums / torch.tensor(characters)).argmax().item()
    return float(best == choice.answer), float(best_norm == choice.answer)


def test_accuracies_are_those_of_the_harness(fast, llama):
    questions = [choice for choice in QUESTIONS if choice.context == choice.context.rstrip()]
    expected = [harness(fast("llama-gqa")[0], llama[1], choice) for choice in questions]
    records = score(*llama, questions)
    found = [(r["picked"] == r["answer"], r["picked_norm"] == r["answer"]) for r in records]
    assert found == expected
    summary = summarize_choices(records)
    accuracy, accuracy_norm = (sum(values) / len(expected) for values in zip(*expected))
    assert 0 < accuracy < 1 and accuracy != accuracy_norm
    assert (summary["accuracy"], summary["accuracy_norm"]) == (accuracy, accuracy_norm)


def test_a_record_from_known_log_probabilities():
    choice = Choice("c", ("ab", "abcdefgh", "abc"), 1)
    best = [[True, True], [True, False, True], [False]]
    scores = [[-1.0, -2.0], [-4.0, -1.0, -3.0], [-4.5]]
    record = evaluation.describe_choice(7, choice, scores, best)
    expected = {"problem": 7, "answer": 1, "picked": 0, "picked_norm": 1, "nll": 8 / 3}
    expected |= {"greedy": [True, False, False], "tokens": [2, 3, 1]}
    assert record == {**expected, "log_probs": [-3.0, -8.0, -4.5]}
    other = {**record, "picked": 1, "picked_norm": 0, "nll": 1.0}
    third = {**record, "picked": 1, "nll": 1 / 3}
    summary = summarize_choices([record, other, third])
    bounds = summary.pop("ci95")
    assert summary == pytest.approx({"accuracy": 2 / 3, "accuracy_norm": 2 / 3, "nll": 4 / 3})
    assert bounds.keys() == summary.keys()
    assert all(low <= summary[name] <= high for name, (low, high) in bounds.items())
