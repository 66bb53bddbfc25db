"""What the engine promises, on the device of `pytest --device cuda tests/test_on_device.py`: the
numbers of a float32 model on the CPU, the same records with and without CUDA graphs, and runs that
are killed, short of memory, or of many ranks.  Without --device a small part of it, on the CPU,
where other tests hold the rest.
"""

import copy
import gc
import signal
from dataclasses import replace
from statistics import median
from unittest.mock import patch

import pytest
import torch
from conftest import ARCHITECTURES, KINDS
from engine.test_decode import assert_same_bits
from runs import assert_same_weights, killed_in, metrics, run_ranks, start, summary, weights

import train
from minisoft import data, engine, evaluation
from minisoft.engine import cuda
from minisoft.io import WEIGHTS
from minisoft.io.checkpoint import DTYPES, load_model
from minisoft.lab.gradient import EMBEDDING
from minisoft.reinforce import leave_one_out
from minisoft.rollout import Decoding, Request
from minisoft.run.optimizer import Optimizer, Schedule
from minisoft.run.world import World

# The difference of logits / rms of all logits: largest, rms.  A wrong mask, rope or norm gives
# about 1; rounding to bfloat16's 8 bits gave up to 0.27 and 0.02 on a CPU.
LIMITS = {"float32": (1e-4, 1e-5), "bfloat16": (0.5, 0.05)}
COSINES = {"float32": (0.9999, 0.9999), "bfloat16": (0.99, 0.97)}  # at least, in E and in the rest
NEAR = 0.02  # how far weights by many GPUs may be from those by one, of the way they went
FLAGS = "--group 8 --cot 40 --eval-cot 60 --steps 3 --validation 8 --validate-every 2 --test 0"
FLAGS = f"{FLAGS} --save-every 1 --show-every 0 --lr 1e-3 --warmup 1".split()
FEW = {"architecture": ["weights/tiny"], "name": ["soft"], "dtype": [*DTYPES]}
FEW["of_gradient"] = [("soft", "bfloat16")]
ALL = {"architecture": [*ARCHITECTURES, "weights/tiny"], "name": [*KINDS], "dtype": [*DTYPES]}
# of the other kinds in bfloat16 a few rows at near-ties make most of it
ALL["of_gradient"] = [(name, "float32") for name in KINDS] + [("hard", "bfloat16")]
ALL["of_gradient"] += FEW["of_gradient"]


def pytest_generate_tests(metafunc):
    asked = ALL if metafunc.config.getoption("--device") else FEW
    for name in [name for name in asked if name in metafunc.fixturenames]:
        ids = [x if isinstance(x, str) else " ".join(x) for x in asked[name]]
        metafunc.parametrize(name, asked[name], ids=ids)


@pytest.fixture
def asked(request):
    if not request.config.getoption("--device"):
        pytest.skip("only with --device: other tests hold it on the CPU")


def on(model, device, dtype):
    """The weights as the dtype rounds them: accelerated, in it, on the device; and in float32 on
    the CPU."""
    rounded = copy.deepcopy(model).to(DTYPES[dtype])
    return engine.accelerate(copy.deepcopy(rounded).to(device)), rounded.float()


@torch.no_grad()
def test_logits(both, device, architecture, dtype):
    tiny = architecture == "weights/tiny"
    plain = load_model(WEIGHTS / "tiny") if tiny else both(architecture)[1]
    there, here = on(plain, device, dtype)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(plain.config.vocab_size, (4, 64), generator=draw)
    found, exact = (m.logits(m(m.embed(ids.to(m.E.device)))).cpu() for m in (there, here))
    off = (found - exact) / exact.square().mean().sqrt()
    largest, mean = off.abs().max().item(), off.square().mean().sqrt().item()
    assert largest <= LIMITS[dtype][0] and mean <= LIMITS[dtype][1], (largest, mean)


def test_gradients(tiny, device, of_gradient, verifier):
    """Of recorded rollouts, a problem each.  A few rows make most of a gradient, so that single
    ones differ much in 16 bits; the median is what is held."""
    name, dtype = of_gradient
    B, G = (9, 32) if device.type == "cuda" else (5, 16)
    (there, here), kind = on(tiny.model, device, dtype), tiny.kind(name)
    problems = data.load_problems("tiny-test")[:B]
    texts = [data.prompt(problem.question, "User: QUESTION Assistant:") for problem in problems]
    encoded = [tiny.tokenizer.encode(text) for text in texts]
    requests = [Request(ids, ("device", i), range(G)) for i, ids in enumerate(encoded)]
    records = engine.rollout(there, tiny.form, kind, requests, Decoding(60))
    cosines = {"E": [], "rest": []}
    for problem, record in zip(problems, records, strict=True):
        made = evaluation.describe(tiny.form, record, 0, problem, verifier)
        advantages = leave_one_out(torch.tensor([g["reward"] for g in made]).double())
        if not advantages.any():
            advantages = torch.tensor([1.0, -1.0]).double().repeat(G // 2)
        found, exact = (gradient(m, kind, record, advantages) for m in (there, here))
        for part, of in cosines.items():
            of.append(torch.cosine_similarity(found[part], exact[part], dim=0).item())
    middle = [median(of) for of in cosines.values()]
    assert all(x >= least for x, least in zip(middle, COSINES[dtype])), cosines


def gradient(model, kind, record, advantages):
    """{"E": (n,), "rest": (m,)} float64 on the CPU, of one problem, summed as training sums it."""
    device = model.E.device
    tensors = {k: x.to(device) for k, x in vars(record).items() if isinstance(x, torch.Tensor)}
    record = replace(record, **tensors)
    optimizer = Optimizer(model, Schedule(1e-9, 10, 0), World(str(device)))
    scale = 1 / len(advantages)
    with optimizer.summing():
        engine.backward(model, kind, [record], [advantages.to(device)], scale, micro_batch=16)
    optimizer.collect()
    parts = {"E": [], "rest": []}
    for name, master in optimizer.masters.items():
        parts["E" if name == EMBEDDING else "rest"].append(master.grad.double().cpu().flatten())
    return {part: torch.cat(of) for part, of in parts.items()}


def test_records_with_and_without_graphs(tiny, device, name, dtype, monkeypatch):
    """And however seldom the host looks at the text: the same bits on a CPU, the same texts on a
    GPU, where the shapes, so the rounding, are others."""
    model, kind = on(tiny.model, device, dtype)[0], tiny.kind(name)
    requests, replays = tiny.requests(range(3), range(8)), []
    replay = torch.cuda.CUDAGraph.replay
    counting = patch.object(torch.cuda.CUDAGraph, "replay", lambda g: replays.append(replay(g)))

    def roll(ahead):
        return engine.rollout(model, tiny.form, kind, requests, Decoding(40), ahead=ahead)

    with counting:
        first, again, often = roll(8), roll(8), roll(1)
        recorded = len(replays)
        monkeypatch.setattr(cuda, "GRAPHS", False)
        ordinary = roll(8)
    assert len(replays) == recorded and bool(recorded) == (device.type == "cuda")
    for one, *others, seldom in zip(first, again, ordinary, often):
        for other in others:
            assert_same_bits(one, other)
        assert torch.equal(one.ids, seldom.ids) and torch.equal(one.role, seldom.role)
        if device.type == "cpu":
            assert_same_bits(one, seldom)


@pytest.mark.usefixtures("asked")
def test_killed_and_resumed(device, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = [*FLAGS, "--device", device.type]
    process = start(killed_in, "engine.backward", 2, [*flags, "--out", str(killed)])
    train.main([*flags, "--out", str(whole)])
    process.join()
    assert process.exitcode == -signal.SIGKILL
    train.main(["--out", str(killed), "--resume"])
    assert_same_weights(killed, whole)
    assert metrics(killed) == metrics(whole)


@pytest.mark.usefixtures("asked")
def test_short_of_memory(device, tmp_path, capsys):
    """Half as many rows, and the weights that these give: a GPU's memory is really limited."""
    if device.type == "cpu":
        pytest.skip("run/test_faults.py holds it")
    flags = [*FLAGS, "--dtype", "float32", "--device", "cuda", "--group", "128"]

    def bytes_of(out, rows):
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        more = ["--steps", "1", "--micro-batch", str(rows), "--out", str(tmp_path / out)]
        train.main([*flags, *more])
        return torch.cuda.max_memory_reserved()

    middle = (bytes_of("less", 64) + bytes_of("more", 128)) // 2
    share = middle / torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        bytes_of("short", 128)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory; from now on 64 rows" in capsys.readouterr().out
    assert_same_weights(tmp_path / "short", tmp_path / "less")


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("shard", ["no", "yes"])
def test_many_ranks(device, tmp_path, shard):
    """All GPUs, or two ranks on the CPU, beside one; on a CPU with the same bits."""
    ranks = torch.cuda.device_count() if device.type == "cuda" else 2
    if ranks < 2:
        pytest.skip("one GPU")
    flags = [*FLAGS, "--validation", "0", "--dtype", "float32", "--device", device.type]
    flags += ["--prompts", str(2 * ranks)]
    run_ranks(tmp_path, ranks, *flags, "--shard", shard, "--out", tmp_path / "many")
    train.main([*flags, "--out", str(tmp_path / "one")])
    before = load_model(WEIGHTS / "tiny").state_dict()
    one, many = weights(tmp_path / "one"), weights(tmp_path / "many")
    way, off = (torch.cat([(one[n] - of[n]).flatten() for n in one]) for of in (before, many))
    assert off.norm() <= (NEAR if device.type == "cuda" else 1e-5) * way.norm()


def test_the_embedded_model_learns(device, tmp_path):
    """As `python train.py` trains it: minutes on a CPU."""
    if device.type == "cpu":
        pytest.skip("python train.py shows it")
    train.main(["--device", device.type, "--show-every", "0", "--out", str(tmp_path / "run")])
    assert summary(tmp_path / "run")["after"]["hard-greedy"]["pass@1"] >= 0.7
