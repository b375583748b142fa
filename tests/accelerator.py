"""A stand-in for a GPU: within `accelerator()`, what is in the wrong place raises, as on "cuda".

A tensor of the device holds a CPU tensor and says that it is on cuda:0. Every operator that meets
one is checked, counted, and then done on the CPU: results have the bits of a CPU run.

What raises: an operator on tensors of both places (but for numbers, and indices in brackets), a
generator of the other place, and numpy() on what is on the device.
What it cannot see: a GPU's memory, speed and rounding, its random numbers, operators or dtypes that
CUDA lacks, a missing map_location, a second GPU. Not for use where a real GPU is there.
"""

from collections import Counter
from contextlib import ExitStack, contextmanager, nullcontext
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
CUDA_CALLS = {  # what functions of torch.cuda return
    "_lazy_init": None,
    "is_available": True,
    "device_count": 1,
    "current_device": 0,
    "set_device": None,
    "synchronize": None,
    "get_device_name": "stand-in",
    "is_bf16_supported": True,
    "is_current_stream_capturing": False,
}
READS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "unique_dim")
CPUGenerator = torch.Generator
cpu_autocast = torch.autocast
cpu_tensor = torch.tensor
cpu_to = torch.Tensor.to

device_generators = set()  # by address: operators are handed other objects for them
counts = Counter()  # "reads", "uploads" and "launches"; the first two make the CPU wait


class OnDevice(torch.Tensor):
    """A tensor of the device; `held` is where its numbers are."""

    @staticmethod
    def __new__(cls, held):
        layout = (held.shape, held.stride(), held.storage_offset())
        self = torch.Tensor._make_wrapper_subclass(cls, *layout, dtype=held.dtype)
        self.held = held
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        return run(operator, args, kwargs or {})

    def cpu(self):
        counts["reads"] += 1
        return self.held.detach().clone()

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, *_, **__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def data_ptr(self):  # 0 makes copy.deepcopy clone
        return 0

    def __reduce_ex__(self, protocol):  # torch.save writes what a CPU tensor is
        return self.held.detach().requires_grad_(self.requires_grad).__reduce_ex__(protocol)


class Mode(TorchDispatchMode):
    """Sees the operators that meet no tensor of the device: those that make one."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        return run(operator, args, kwargs or {})


class Generator(CPUGenerator):
    """A generator that knows its place."""

    def __new__(cls, device="cpu"):
        self = super().__new__(cls)
        device_generators.discard(self._cdata)  # of a generator that is no more
        if torch.device(device).type == "cuda":
            device_generators.add(self._cdata)
        return self

    def __init__(self, device="cpu"):
        pass

    device = property(lambda self: CUDA if self._cdata in device_generators else CPU)


def to(tensor, *args, copy=False, **kwargs):
    """`Tensor.to`: PyTorch's own would ask a driver which device "cuda" is."""
    device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
    kind = device.type if device else None
    if isinstance(tensor, OnDevice) and kind in ("cpu", "meta"):
        tensor = tensor.cpu() if kind == "cpu" else tensor.held
    elif isinstance(tensor, OnDevice):
        device = None
    elif kind == "cuda":
        device = CUDA
    return cpu_to(tensor, device, dtype, memory_format=memory_format, copy=copy)


def run(operator, args, kwargs):
    """An operator of PyTorch, checked and done on the CPU; its results put where they belong."""
    key = "CompositeImplicitAutograd"
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), key)
    if composite and torch.is_inference_mode_enabled():
        with Mode():  # elsewhere autograd has taken it apart already
            return operator.decompose(*args, **kwargs)
    leaves = tree_leaves((args, kwargs))
    mine = {id(t.held): t for t in leaves if isinstance(t, OnDevice)}
    named = kwargs.get("device")
    there = bool(mine) or (named is not None and torch.device(named).type == "cuda")
    check(operator, args, leaves, there)
    is_view = any(r.alias_info and not r.alias_info.is_write for r in operator._schema.returns)
    if there:
        count(operator, args, leaves, is_view)
    if named is not None:
        kwargs = kwargs | {"device": CPU if there else torch.device(named)}
    args, kwargs = tree_map(lambda t: t.held if isinstance(t, OnDevice) else t, (args, kwargs))
    # In inference mode, what views a normal tensor is a normal one.
    normal = is_view and mine and not next(iter(mine.values())).is_inference()
    leave = normal and torch.is_inference_mode_enabled()
    with torch.inference_mode(False) if leave else nullcontext():
        out = operator(*args, **kwargs)
        if not there:
            return out
        return tree_map(lambda t: wrap(t, mine) if isinstance(t, torch.Tensor) else t, out)


def wrap(held, mine):
    """A result of an operator; what was written in place stays the tensor that it was."""
    return mine[id(held)] if id(held) in mine else OnDevice(held)


def check(operator, args, leaves, there):
    """Raises RuntimeError, as CUDA does, if a tensor or a generator is in the wrong place."""
    name = operator.overloadpacket.__name__
    for t in leaves:
        if isinstance(t, CPUGenerator) and there != (t._cdata in device_generators):
            raise RuntimeError(f"{operator}: the generator is not where the numbers are to be")
        if not there or not isinstance(t, torch.Tensor) or isinstance(t, OnDevice):
            continue
        is_copy = name in ("_to_copy", "copy_")
        is_number = t.dim() == 0 and (torch.Tag.pointwise in operator.tags or name == "where")
        is_index = name in ("index", "index_put_") and isinstance(args[0], OnDevice)
        if not (is_copy or is_number or (is_index and t is not args[0])):
            places = "cuda:0 and cpu"
            raise RuntimeError(f"{operator}: expected all tensors on the same device, not {places}")


def count(operator, args, leaves, is_view):
    """Counts what an operator on the device costs: a launch, and perhaps a wait."""
    name = operator.overloadpacket.__name__
    from_cpu = [t for t in leaves if isinstance(t, torch.Tensor) and not isinstance(t, OnDevice)]
    masks = [t for t in leaves if isinstance(t, OnDevice) and t.dtype == torch.bool]
    if name in READS or (name in ("index", "index_put_") and any(m is not args[0] for m in masks)):
        counts["reads"] += 1  # its result, or the size of it
    if any(t.dim() > 0 or name in ("_to_copy", "copy_") for t in from_cpu):
        counts["uploads"] += 1
    if not is_view and not name.startswith("empty"):
        counts["launches"] += 1


@contextmanager
def accelerator():
    """Within it "cuda" is a device. Yields `counts`, set to 0."""
    swap = torch.__future__.get_swap_module_params_on_conversion()
    with ExitStack() as stack:

        def patch(owner, name, value):
            stack.enter_context(mock.patch.object(owner, name, value))

        for name, value in CUDA_CALLS.items():
            patch(torch.cuda, name, lambda *_, value=value, **__: value)
        patch(torch, "Generator", Generator)
        patch(torch.Tensor, "to", to)
        patch(torch.accelerator, "current_accelerator", lambda *_, **__: None)  # Adam asks it
        patch(torch, "autocast", lambda device, *a, **k: cpu_autocast("cpu", *a, **k))
        patch(torch, "tensor", lambda *a, device="cpu", **k: cpu_tensor(*a, **k).to(device))
        # module.to("cuda") makes tensors of the device.
        torch.__future__.set_swap_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swap)
        counts.clear()
        stack.enter_context(Mode())
        yield counts
