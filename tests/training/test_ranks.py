"""Many ranks: the same weights whatever their number, on one host or two; a rank that dies or hangs; resuming."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--prompts", "4", "--group", "4", "--cot", "40", "--validation", "0", "--test", "0", "--shares-every", "2",
         "--show-every", "0", "--steps", "5", "--warmup", "1", "--lr", "2e-3", "--device", "cpu"]

SLOW = pytest.mark.slow


def environment(rank=None, size=None, port=None, host="127.0.0.1"):
    """That of a test, with two ranks' variables where there is no torchrun."""
    own = {} if rank is None else {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "MASTER_ADDR": host,
                                   "MASTER_PORT": str(port)}
    return {**os.environ, "OMP_NUM_THREADS": "1", **own}


def torchrun(ranks, out, *flags):
    found = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}",
                            "train.py", *FLAGS, "--out", str(out), *flags], cwd=ROOT, capture_output=True, text=True,
                           env=environment())
    assert found.returncode == 0, found.stderr


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def weights(out):
    return load_file(out / "last" / "model.safetensors")


def metrics(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in m.items() if not k.startswith(("seconds", "memory", "replay"))} for m in lines]  # replay: rounding


def assert_same(out, reference):
    expected = weights(reference)
    assert max((p - expected[name]).abs().max().item() for name, p in weights(out).items()) <= 1e-6
    for mine, other in zip(metrics(out), metrics(reference), strict=True):
        assert mine.keys() == other.keys()
        for name in mine:
            assert mine[name] == pytest.approx(other[name], rel=1e-6, abs=1e-9), name


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Five updates by one process."""
    out = tmp_path_factory.mktemp("ranks") / "one"
    subprocess.run([sys.executable, "train.py", *FLAGS, "--out", str(out)], cwd=ROOT, check=True, capture_output=True,
                   env=environment())
    before = load_file(ROOT / "weights/tiny/model.safetensors")
    assert max((p - before[name]).abs().max().item() for name, p in weights(out).items()) > 1e-3  # something was learnt
    return out


@pytest.mark.parametrize("ranks, shard", [
    pytest.param(2, "no", marks=SLOW), pytest.param(2, "yes", marks=SLOW), pytest.param(4, "no", marks=SLOW),
    (4, "yes")])
def test_five_updates_by_any_number_of_ranks(one, tmp_path, ranks, shard):
    """B = 4 problems, so no rank has a part of one."""
    torchrun(ranks, tmp_path / "run", "--shard", shard)
    assert_same(tmp_path / "run", one)
    pieces = list((tmp_path / "run/state/step-000005").glob("piece-*"))
    assert len(pieces) == (ranks if shard == "yes" else 1)
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["world"] == ranks and config["shard"] == shard


@SLOW
def test_resumed_by_another_number_of_ranks(one, tmp_path):
    """Two ranks with pieces, then one, then four with pieces."""
    out = tmp_path / "run"
    torchrun(2, out, "--shard", "yes", "--save-every", "2")
    shutil.rmtree(out / "state/step-000005")
    assert [path.name for path in (out / "state").iterdir()] == ["step-000004"]
    resume = [sys.executable, "train.py", "--out", str(out), "--resume", "--shard", "no"]
    subprocess.run(resume, cwd=ROOT, check=True, capture_output=True, env=environment())
    assert_same(out, one)
    shutil.rmtree(out / "state/step-000005")
    torchrun(4, out, "--resume", "--shard", "yes")
    assert_same(out, one)


def start_ranks(out, size, *flags):
    """Ranks without torchrun, which would end them all as soon as one dies."""
    port = free_port()
    return [subprocess.Popen([sys.executable, "train.py", *FLAGS, "--steps", "1000", "--out", str(out), *flags], cwd=ROOT,
                             env=environment(rank, size, port), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for rank in range(size)]


def wait_for(path, seconds=90):
    end = time.monotonic() + seconds
    while not path.exists() or not path.stat().st_size:
        assert time.monotonic() < end, f"{path} does not come"
        time.sleep(0.1)


@pytest.mark.parametrize("how, gone, patience", [
    (signal.SIGKILL, 1, "5"), pytest.param(signal.SIGKILL, 0, "5", marks=SLOW), pytest.param(signal.SIGSTOP, 2, "0.3", marks=SLOW)])
def test_a_rank_that_dies_or_hangs_is_named_by_the_others(tmp_path, how, gone, patience):
    out = tmp_path / "run"
    ranks = start_ranks(out, 3, "--prompts", "3", "--patience", patience)
    try:
        wait_for(out / "metrics.jsonl")
        ranks[gone].send_signal(how)
        for rank, process in enumerate(ranks):
            if rank != gone:
                said = process.communicate(timeout=60)[1]
                assert process.returncode == 1
                assert f"rank {rank}: expected an answer of every rank, found none of rank {gone} (" in said
    finally:
        for process in ranks:
            process.kill()
            process.communicate()


def test_an_error_of_one_rank_is_the_error_of_all(tmp_path):
    """Nobody waits: the folder belongs to another run, as only the main rank can see."""
    out = tmp_path / "run"
    first = subprocess.Popen([sys.executable, "train.py", *FLAGS, "--steps", "1000", "--out", str(out)], cwd=ROOT,
                             env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(out / "metrics.jsonl")
        ranks = start_ranks(out, 2, "--resume")
        for process in ranks:
            assert "found another one at work in it" in process.communicate(timeout=60)[1] and process.returncode == 1
    finally:
        first.kill()
        first.wait()


def netns(*command, **options):
    return subprocess.run(["ip", *command], check=True, capture_output=True, **options)


@pytest.fixture
def two_hosts():
    """Two network namespaces joined by a cable; ("name", "address") of each."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and iproute2")
    names = [f"minisoft-{os.getpid()}-{i}" for i in range(2)]
    try:
        try:
            for name in names:
                netns("netns", "add", name)
            netns("link", "add", "cable0", "netns", names[0], "type", "veth", "peer", "name", "cable1", "netns", names[1])
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


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["no", "yes"])
def test_two_hosts(one, tmp_path, two_hosts, shard):
    """Through torchrun's rendezvous, two ranks on each."""
    master = two_hosts[0][1]
    hosts = [subprocess.Popen(
        ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2",
         "--rdzv-backend=c10d", f"--rdzv-endpoint={master}:29500", "--rdzv-id=test", f"--rdzv-conf=is_host={1 - i}", f"--local-addr={address}", "train.py",
         *FLAGS, "--out", str(tmp_path / "run"), "--shard", shard],
        cwd=ROOT, env={**environment(), "GLOO_SOCKET_IFNAME": f"cable{i}"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True) for i, (name, address) in enumerate(two_hosts)]
    try:
        for process in hosts:
            said = process.communicate(timeout=180)[0]
            assert process.returncode == 0, said
    finally:
        for process in hosts:
            process.kill()
            process.wait()
    assert_same(tmp_path / "run", one)
    assert json.loads((tmp_path / "run/config.json").read_text())["world"] == 4


@pytest.mark.slow
def test_two_ranks_with_pieces_in_bfloat16_go_on_bit_for_bit(tmp_path):
    flags = ["--shard", "yes", "--dtype", "bfloat16", "--save-every", "2", "--steps", "4"]
    torchrun(2, tmp_path / "whole", *flags)
    torchrun(2, tmp_path / "run", *flags)
    shutil.rmtree(tmp_path / "run/state/step-000004")
    torchrun(2, tmp_path / "run", "--resume", "--steps", "4")
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    for name in ("last/model.safetensors", *(f"state/step-000004/piece-{rank}-of-2.safetensors" for rank in (0, 1))):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert {t.dtype for t in load_file(tmp_path / "run/state/step-000004/piece-1-of-2.safetensors").values()} == {torch.float32}
