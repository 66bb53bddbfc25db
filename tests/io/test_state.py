"""The state of a run: what is saved comes back, damage is noticed, nothing good is lost."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from conftest import refuses

from minisoft.io import state
from minisoft.run.world import World

WORLD = World("cpu")
TENSORS = {"weight/a": torch.randn(12), "exp_avg/a": torch.randn(12)}


def save(folder, step, keep=2, tensors=TENSORS, **facts):
    state.save(folder, {**facts, "step": step}, tensors, 1, WORLD, keep)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_comes_back(tmp_path):
    facts = {"best": 0.1 + 0.2, "before": None, "sources": {"--data": "é"}}
    save(tmp_path, 3, **facts)
    found = state.newest(tmp_path, WORLD)
    assert found.facts == {**facts, "step": 3, "pieces": 1}
    for name, tensor in TENSORS.items():
        assert torch.equal(found.read(name), tensor)
    assert names(tmp_path) == ["step-000003"]


def test_the_pieces_of_several_ranks_are_read_as_one(tmp_path):
    x, folder = torch.randn(10), tmp_path / "step-000001"
    folder.mkdir()
    padded = torch.cat((x, torch.zeros(2)))
    for i, piece in enumerate(padded.chunk(3)):
        state.save_tensors(folder / f"piece-{i}-of-3.safetensors", {"x": piece})
    state.write_json(folder / "facts.json", {"pieces": 3})
    assert torch.equal(state.State(folder).read("x"), padded)


def test_the_newest_are_kept(tmp_path):
    for step in (1, 2, 10, 1000000):
        save(tmp_path, step)
    assert names(tmp_path) == ["step-000010", "step-1000000"]
    assert state.newest(tmp_path, WORLD).facts["step"] == 1000000


PIECE, FACTS, MANIFEST = "piece-0-of-1.safetensors", "facts.json", "manifest.json"
DAMAGES = [  # file, what becomes of its bytes; None: it is gone
    (PIECE, lambda data: data[:-3]),
    (PIECE, lambda data: data[:-1] + bytes([data[-1] ^ 1])),
    *((name, lambda data: None) for name in (PIECE, MANIFEST)),
    (PIECE, lambda data: b""),
    *((name, lambda data: b"{}") for name in (FACTS, MANIFEST)),
    (MANIFEST, lambda data: b'{"piece-0-of-1.safetensors": 3}'),
]


@pytest.mark.parametrize("name, damage", DAMAGES)
def test_a_damaged_state_is_passed_over_for_the_one_before_it(tmp_path, capsys, name, damage):
    save(tmp_path, 1)
    save(tmp_path, 2)
    newest = tmp_path / "step-000002"
    data = damage((newest / name).read_bytes())
    (newest / name).unlink()
    if data is not None:
        (newest / name).write_bytes(data)
    assert state.newest(tmp_path, WORLD).facts["step"] == 1
    said = capsys.readouterr().out
    assert str(newest) in said and "expected" in said and "this state is passed over" in said
    save(tmp_path, 2)  # the run comes here again
    assert state.newest(tmp_path, WORLD).facts["step"] == 2


def test_no_state_is_whole(tmp_path):
    assert state.newest(tmp_path, WORLD) is None
    for step in (1, 2):
        save(tmp_path, step)
        (tmp_path / f"step-00000{step}" / "facts.json").unlink()
    refuses(tmp_path, tmp_path, "a whole state", FACTS, by=partial(state.newest, world=WORLD))


def test_later_damaged_states_do_not_push_out_good_ones(tmp_path):
    """keep 1: after going on from step 1 past the damaged step 3, step 2 must stay."""
    save(tmp_path, 1, keep=2)
    save(tmp_path, 3, keep=2)
    (tmp_path / "step-000003" / "facts.json").unlink()
    save(tmp_path, 2, keep=1)
    assert names(tmp_path) == ["step-000002"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_kill_or_full_disk_while_it_is_written_leaves_the_one_before(
    tmp_path, monkeypatch, error
):
    """And a disk has the room again."""
    save(tmp_path, 1)

    def fails(*_):
        raise error

    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(state, "write_json", fails)
        save(tmp_path, 2)
    assert ("step-000002.being-written" in names(tmp_path)) == (error is KeyboardInterrupt)
    assert state.newest(tmp_path, WORLD).facts["step"] == 1
    save(tmp_path, 2, keep=1)
    assert names(tmp_path) == ["step-000002"]


def test_a_folder_has_one_process(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from minisoft.io import state; "
        "held = state.lock(Path(sys.argv[1], 'lock')); print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    refuses(tmp_path / "lock", tmp_path / "lock", f"process {other.pid} on ", by=state.lock)
    other.kill()  # SIGKILL: the lock goes with the process
    other.communicate()
    state.lock(tmp_path / "lock").close()
