"""What lies on a GPU and what on the host: rollouts and gradients of every kind on a device that is
not there, by the definitions and by the engine, so that a mistake is found without a GPU.

A tensor on the device is `There`: real numbers behind a label (that of `meta`, which no CPU build
of torch refuses).  An operation that meets tensors of both places is an error, as on a GPU; and in
a step of the engine, which a CUDA graph records, one that waits for the host or takes from it.
"""

import copy
from functools import partial

import pytest
import small
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from minisoft import engine, reinforce, rollout
from minisoft.engine import cuda, decode
from minisoft.engine.cache import FusedCache
from minisoft.rollout import ANSWER, COT, Decoding, Request

WAYS = {
    "plain": (rollout.rollout, reinforce.backward),
    "engine": (engine.rollout, partial(engine.backward, micro_batch=3)),
}
WAIT = "_local_scalar_dense nonzero lift_fresh masked_select equal".split()


class There(torch.Tensor):
    """A tensor of the device, with its numbers in `here`."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here):
        layout = {"strides": here.stride(), "storage_offset": here.storage_offset()}
        size, dtype = here.shape, here.dtype
        return cls._make_wrapper_subclass(cls, size, dtype=dtype, device="meta", **layout)

    def __init__(self, here):
        self.here = here

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return Device().__torch_dispatch__(function, types, args, kwargs)

    def tolist(self):
        return self.here.tolist()

    def data_ptr(self):
        return self.here.data_ptr()


class Device(TorchDispatchMode):
    """Runs every operation on the host, and says where its tensors lie."""

    in_step = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        there = {id(x.here): x for x in tensors if isinstance(x, There)}
        on_host = [x for x in tensors if not isinstance(x, There) and x.dim()]
        to = kwargs.get("device")
        if self.in_step:
            name, indices = function.name().split("::")[1].split(".")[0], (*args, None)[1]
            indices = indices if isinstance(indices, list) else []
            masks = torch.bool in [getattr(i, "dtype", 0) for i in indices]
            assert name not in WAIT and not masks and not (to and on_host), f"{name} waits"
        if to is not None:
            kwargs["device"] = torch.device("cpu")
        elif there and "copy" not in function.name():
            assert not on_host, f"{function}: expected one device, found two"
        is_there = bool(there) if to is None else torch.device(to).type == "meta"

        def back(x):
            wrap = is_there and isinstance(x, torch.Tensor)
            return (there[id(x)] if id(x) in there else There(x)) if wrap else x

        bare = tree_map(lambda x: x.here if isinstance(x, There) else x, (args, kwargs))
        return tree_map(back, function(*bare[0], **bare[1]))


@pytest.fixture
def device(monkeypatch):
    real = torch.tensor

    def tensor(data, device=None, **options):  # which else makes a tensor that has no numbers
        made = real(data, **options)
        return made if device is None else made.to(device)

    monkeypatch.setattr(torch, "tensor", tensor)
    return Device()


@pytest.fixture
def steps(device, monkeypatch):
    """The shapes of the steps that the engine has run on the device."""
    shapes = []

    def run(self, recorded, shape, step):
        shapes.append(shape)
        device.in_step = True
        step()
        device.in_step = False

    monkeypatch.setattr(cuda.Graphs, "run", run)
    monkeypatch.setitem(decode.CACHES, "meta", FusedCache)
    return shapes


def moved(model):
    """A copy of a model on the device."""
    model = copy.deepcopy(model)
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = torch.nn.Parameter(There(p.detach()))
    return model


def learnt(model, name, way):
    """(the gradients of all parameters, tokens of all rows), both on the host."""
    roll, backward = WAYS[way]
    requests = [Request([1, 2, 3, 4 + i], (i,), range(4)) for i in range(2)]
    records = roll(model, small.FORM, small.KINDS[name], requests, Decoding(3))
    advantages = reinforce.leave_one_out(torch.arange(8.0, dtype=torch.float64).view(2, 4) ** 2)
    backward(model, small.KINDS[name], records, list(advantages), 1 / 8)
    rows = [(record.on_host(), row) for record in records for row in range(4)]
    tokens = [record.tokens(row, role) for record, row in rows for role in (COT, ANSWER)]
    return [p.grad.detach().cpu() for p in model.parameters()], tokens


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", small.KINDS)
def test_rollouts_and_gradients_on_a_device(device, steps, monkeypatch, name, way):
    """The numbers are those of the host, where the advantages come from, as rewards do."""
    model = engine.accelerate(small.small_model())
    with device:
        there = moved(model)
    on_host, text = learnt(model, name, way)
    monkeypatch.setitem(decode.AHEAD, "meta", 4)
    with device:
        on_device, told = learnt(there, name, way)
    assert bool(steps) == (way == "engine")
    assert there.E.device.type == "meta" and on_device[0].device.type == "cpu" and text == told
    for one, two in zip(on_host, on_device, strict=True):
        assert one.any() and (one - two).abs().max() <= 1e-3 * one.abs().max()


def rolled_on(device, name, dtype, *greedy):
    with device:
        model = moved(engine.accelerate(small.small_model()).to(dtype))
        requests = [Request([1, 2, 3, 4 + i], (i,), range(3)) for i in range(2)]
        how = Decoding(6, *greedy)
        engine.rollout(model, small.FORM, small.KINDS[name], requests, how, ahead=4, rows=4)


@pytest.mark.parametrize("name", small.KINDS)
def test_a_step_needs_nothing_from_the_host(device, steps, name):
    """What a CUDA graph can record: no tensor's value reaches Python or decides a shape, and
    nothing comes from there.  Every step goes through `Graphs.run`.  Greedy, in 16 bits; the other
    way above."""
    rolled_on(device, name, torch.bfloat16, True, True)
    assert len(steps) % 4 == 0
    assert {shape[:2] for shape in steps} >= {(True, False), (False, True)}  # and both at once


MISTAKES = [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x + torch.ones(9)]
MISTAKES += [lambda x: torch.tensor([1, 2], device=x.device), lambda x: torch.equal(x, x)]


@pytest.mark.parametrize("mistake", [*MISTAKES, torch.nonzero])
def test_a_step_that_needs_the_host_is_found(device, steps, monkeypatch, mistake):
    real = decode.choose

    def choose(*args):
        chosen = real(*args)
        mistake(chosen.token)
        return chosen

    monkeypatch.setattr(decode, "choose", choose)
    with pytest.raises(AssertionError):
        rolled_on(device, "hard", torch.float32)


def test_tensors_in_two_places_are_an_error(device):
    here = torch.ones(2)
    with device:
        there = torch.ones(2, device="meta")
        assert (there + 1).sum().item() == 4 and (there + here[0]).cpu().tolist() == [2, 2]
        for mistake in (lambda: there + here, lambda: torch.stack((here, there))):
            with pytest.raises(AssertionError, match="expected one device"):
                mistake()
