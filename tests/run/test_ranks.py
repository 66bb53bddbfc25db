"""Many ranks: the same weights whatever their number, on one host or two; a rank that dies or
hangs; resuming."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from runs import ENVIRONMENT, ROOT, config, metrics, run_ranks, start_ranks, wait_for, weights
from safetensors.torch import load_file
from torch.distributed.elastic.utils.distributed import get_free_port

import train

FLAGS = "--prompts 4 --group 4 --cot 24 --validation 0 --test 0 --show-every 0 --steps 5"
FLAGS = f"{FLAGS} --warmup 1 --lr 2e-3 --device cpu".split()
SLOW = pytest.mark.slow


def assert_same(out, reference):
    expected = weights(reference)
    assert max((p - expected[n]).abs().max().item() for n, p in weights(out).items()) <= 1e-6
    lines = [metrics(folder, "replay") for folder in (out, reference)]  # replay: rounding
    for of_run, of_reference in zip(*lines, strict=True):
        assert of_run.keys() == of_reference.keys()
        for name in of_run:
            assert of_run[name] == pytest.approx(of_reference[name], rel=1e-6, abs=1e-9), name


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Five updates by one process."""
    out = tmp_path_factory.mktemp("ranks") / "one"
    train.main([*FLAGS, "--out", str(out)])
    before = load_file(ROOT / "weights/tiny/model.safetensors")
    largest = max((p - before[n]).abs().max().item() for n, p in weights(out).items())
    assert largest > 1e-3  # something was learnt
    return out


MORE = [pytest.param(*of, marks=SLOW) for of in ((2, "no"), (2, "yes"), (4, "no"))]


@pytest.mark.parametrize("ranks, shard", [(4, "yes"), *MORE])
def test_five_updates_by_any_number_of_ranks(one, tmp_path, ranks, shard):
    """B = 4 problems, so no rank has a part of one."""
    out = tmp_path / "run"
    run_ranks(tmp_path, ranks, *FLAGS, "--out", out, "--shard", shard)
    assert_same(out, one)
    pieces = list((out / "state/step-000005").glob("piece-*"))
    assert len(pieces) == (ranks if shard == "yes" else 1)
    assert config(out)["world"] == ranks and config(out)["shard"] == shard


@SLOW
def test_resumed_by_another_number_of_ranks(one, tmp_path):
    """Two ranks with pieces, then one, then four with pieces."""
    out = tmp_path / "run"
    run_ranks(tmp_path, 2, *FLAGS, "--out", out, "--shard", "yes", "--save-every", "2")
    shutil.rmtree(out / "state/step-000005")
    assert [path.name for path in (out / "state").iterdir()] == ["step-000004"]
    train.main(["--out", str(out), "--resume", "--shard", "no"])
    assert_same(out, one)
    shutil.rmtree(out / "state/step-000005")
    run_ranks(tmp_path, 4, "--out", out, "--resume", "--shard", "yes")
    assert_same(out, one)


LATER = [(signal.SIGKILL, 0, "5"), (signal.SIGSTOP, 2, "0.3")]
LATER = [pytest.param(*of, marks=SLOW) for of in LATER]


@pytest.mark.parametrize("how, gone, patience", [(signal.SIGKILL, 1, "5"), *LATER])
def test_a_rank_that_dies_or_hangs_is_named_by_the_others(tmp_path, how, gone, patience):
    """Its short updates keep no rank busy for as long as the others' grace."""
    flags = [*FLAGS, *"--prompts 3 --group 2 --cot 10 --steps 100000".split()]
    out = tmp_path / "run"
    flags += ["--out", str(out), "--patience", patience]
    ranks = start_ranks(tmp_path, 3, *flags, grace=3)
    try:
        wait_for(out / "metrics.jsonl")
        os.kill(ranks[gone].pid, how)
        for rank, process in enumerate(ranks):
            if rank != gone:
                process.join(60)
                assert process.exitcode == 1
                text = (tmp_path / f"rank-{rank}").read_text()
                expected = "expected an answer of every rank, found none of"
                assert f"rank {rank}: {expected} rank {gone} (" in text
    finally:
        for process in ranks:
            process.kill()
            process.join()


def test_an_error_of_one_rank_is_the_error_of_all(tmp_path):
    """Nobody waits: the folder belongs to another run, as only the main rank can see."""
    out = tmp_path / "run"
    (first,) = start_ranks(tmp_path / "first", 1, *FLAGS, "--steps", "100000", "--out", out)
    try:
        wait_for(out / "metrics.jsonl")
        ranks = start_ranks(tmp_path, 2, "--out", out, "--resume")
        for rank, process in enumerate(ranks):
            process.join(60)
            assert process.exitcode == 1
            text = (tmp_path / f"rank-{rank}").read_text()
            assert "lock: expected no other process at work" in text
    finally:
        first.kill()
        first.join()


def netns(*command, **options):
    return subprocess.run(["ip", *command], check=True, capture_output=True, **options)


@pytest.fixture
def two_hosts():
    """Two network namespaces joined by a cable; ("name", "address") of each."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and iproute2")
    names = [f"minisoft-{os.getpid()}-{i}" for i in range(2)]
    cable = ["type", "veth", "peer", "name", "cable1", "netns", names[1]]
    try:
        try:
            for name in names:
                netns("netns", "add", name)
            netns("link", "add", "cable0", "netns", names[0], *cable)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
        for i, name in enumerate(names):
            netns("-n", name, "addr", "add", f"10.77.0.{i + 1}/24", "dev", f"cable{i}")
            netns("-n", name, "link", "set", f"cable{i}", "up")
            netns("-n", name, "link", "set", "lo", "up")
        yield [(name, f"10.77.0.{i + 1}") for i, name in enumerate(names)]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def start_host(i, inside, cable, address, endpoint, flags):
    """torchrun's two ranks of host i, as users start it."""
    torchrun = "-m torch.distributed.run --nnodes=2 --nproc-per-node=2 --rdzv-backend=c10d"
    torchrun = f"{torchrun} --rdzv-endpoint={endpoint} --rdzv-id=test --rdzv-conf=is_host={1 - i}"
    command = [*inside, sys.executable, *torchrun.split(), f"--local-addr={address}", "train.py"]
    how = {"env": {**ENVIRONMENT, "GLOO_SOCKET_IFNAME": cable}, "cwd": ROOT, "text": True}
    how |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen([*command, *flags], **how)


@SLOW
@pytest.mark.parametrize("shard", ["no", "yes"])
def test_two_hosts(one, tmp_path, two_hosts, shard):
    """Through torchrun's rendezvous, two ranks on each."""
    endpoint = f"{two_hosts[0][1]}:29500"
    insides = [["ip", "netns", "exec", name] for name, _ in two_hosts]
    hosts = [(insides[i], f"cable{i}", two_hosts[i][1], endpoint) for i in (0, 1)]
    assert_four_ranks(hosts, one, tmp_path / "run", shard)


@SLOW
def test_two_nodes_on_one_machine(one, tmp_path):
    """Two agents of torchrun that meet on the loopback."""
    hosts = [([], "lo", "127.0.0.1", f"127.0.0.1:{get_free_port()}")] * 2
    assert_four_ranks(hosts, one, tmp_path / "run", "no")


def assert_four_ranks(hosts, one, out, shard):
    flags = [*FLAGS, "--out", str(out), "--shard", shard]
    hosts = [start_host(i, *host, flags) for i, host in enumerate(hosts)]
    try:
        for process in hosts:
            text = process.communicate(timeout=180)[0]
            assert process.returncode == 0, text
    finally:
        for process in hosts:
            process.kill()
            process.wait()
    assert_same(out, one)
    assert config(out)["world"] == 4


@SLOW
def test_two_ranks_with_pieces_in_bfloat16_go_on_bit_for_bit(tmp_path):
    flags = [*FLAGS, *"--shard yes --dtype bfloat16 --save-every 2 --steps 4".split()]
    whole, out = tmp_path / "whole", tmp_path / "run"
    run_ranks(tmp_path, 2, *flags, "--out", whole)
    run_ranks(tmp_path, 2, *flags, "--out", out)
    shutil.rmtree(out / "state/step-000004")
    run_ranks(tmp_path, 2, "--out", out, "--resume", "--steps", "4")
    assert metrics(out, "replay") == metrics(whole, "replay")
    pieces = [f"state/step-000004/piece-{rank}-of-2.safetensors" for rank in (0, 1)]
    for name in ("last/model.safetensors", *pieces):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert {t.dtype for t in load_file(out / pieces[1]).values()} == {torch.float32}
