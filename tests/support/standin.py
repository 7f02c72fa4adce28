"""A device for tests that is not the CPU: it finds tensors that were left on the wrong device.

Its memory is the CPU's under another name, and the CPU computes for it, so that it gives the CPU's
values. To torch it is an accelerator: its tensors are plain `torch.Tensor`s with storages, dispatch
keys and an autograd thread of their own, and what torch composes of smaller operations on a GPU it
composes of them here. As on a GPU,

- an operation refuses tensors of the CPU beside those of the device, except scalars (tensors
  without dimensions) and, in `x[i]`, indices;
- to read a value or to copy a tensor, the program waits for the device. `waits` counts that.

It needs no compiler. Torch's own hooks for backends written in Python register it; DLPack, which
hands a tensor's address and device from one library to another, renames the device.

A process must register the device before its first backward pass, and keeps it then. So tests run
their cases in a process of its own, by `standin_process`.

Limits: an operation that only the CPU has is not noticed, nor a wait within an operation, as in
some decompositions of matrices; autocast lowers matrix products alone; tensors cannot be pickled;
and time is the CPU's.
"""

import contextlib
import ctypes
import functools
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import dlpack
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from waits import note

NAME = "standin"
aten = torch.ops.aten

# Device types of DLPack (dlpack.h): the CPU, and an extension, which torch takes for PrivateUse1.
_CPU, _EXTENSION = 1, 12
_address = ctypes.pythonapi.PyCapsule_GetPointer
_address.restype, _address.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]

# Operations that tell the CPU the shape of their result, since it depends on values.
SHAPED_BY_VALUES = {
    "_unique", "_unique2", "bincount", "masked_select", "nonzero", "repeat_interleave",
    "unique_consecutive", "unique_dim",
}  # fmt: skip
INDEXING = {"index", "index_put_", "index_put", "_index_put_impl_", "_unsafe_index"}
LOWERED = (
    "addmm", "baddbmm", "bmm", "linear", "matmul", "mm", "scaled_dot_product_attention",
)  # fmt: skip


class WrongDevice(RuntimeError):
    """A tensor of the CPU where one of the device is needed."""


def _renamed(tensor: Tensor, device_type: int) -> Tensor:
    """The same memory as a tensor of another device."""
    capsule = dlpack.to_dlpack(tensor)
    # DLTensor begins with the address of the data, of 8 bytes, and the type of the device.
    ctypes.c_int32.from_address(_address(capsule, b"dltensor") + 8).value = device_type
    return dlpack.from_dlpack(capsule)


def _is_here(value: object) -> bool:
    return isinstance(value, Tensor) and value.device.type == NAME


def _each(value: Any, act: Callable[[Any], Any]) -> Any:
    """Apply to an argument, or to each item of a list of tensors."""
    return [act(item) for item in value] if isinstance(value, list | tuple) else act(value)


def _to_cpu(value: Any) -> Any:
    """The CPU's view of a value of the device; other values as they are."""
    if not _is_here(value):
        return torch.device("cpu") if type(value) is torch.device else value
    if value.numel() == 0:  # a result that is not made yet: unlike renamed memory, it can grow
        return torch.empty(value.shape, dtype=value.dtype)
    found = _renamed(value, _CPU)
    # DLPack hands on neither of these bits.
    found = found.conj() if value.is_conj() else found
    return torch._neg_view(found) if value.is_neg() else found


def _from_cpu(value: Any) -> Any:
    return _renamed(value, _EXTENSION) if isinstance(value, Tensor) else value


class _Operation:
    """What the kernel must know of an operation."""

    def __init__(self, operation: Any):
        schema = operation._schema
        self.name = operation.overloadpacket.__name__
        self.names = [argument.name for argument in schema.arguments]
        # Tensors for which torch's Python side may hand on a number, and takes none back.
        takes_numbers = torch._C._should_allow_numbers_as_tensors(self.name)
        self.tensors = [
            argument.name for argument in schema.arguments if str(argument.type) == "Tensor"
        ]
        self.numbers = (bool,) if takes_numbers else (bool, int, float)
        # The arguments that are written to, by the name that the schema gives to their memory.
        self.written = {
            next(iter(argument.alias_info.before_set)): argument.name
            for argument in schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write
        }
        aliases = [returned.alias_info for returned in schema.returns]
        # Views, which have the storage of their argument, and `set_`, which sets it.
        self.moves_no_data = self.name == "set_" or any(
            alias is not None and not alias.is_write for alias in aliases
        )
        # For each result, the argument that it is; None for a new tensor.
        self.returned = [
            None if alias is None else self.written.get(next(iter(alias.before_set)))
            for alias in aliases
        ]
        self.random = torch.Tag.nondeterministic_seeded in operation.tags

    def check(self, named: dict[str, Any]) -> None:
        """Raise a WrongDevice unless a GPU would take these arguments."""
        for name, value in named.items():
            if type(value) is torch._C.Generator and not _Generator.is_here(value):
                raise WrongDevice(f"`{self.name}` got a generator of the CPU.")
            for tensor in value if isinstance(value, list | tuple) else (value,):
                if not isinstance(tensor, Tensor) or _is_here(tensor):
                    continue
                written = name in self.written.values()
                index = name in ("index", "indices")
                # A scalar, or an index in brackets.
                fits = self.name in INDEXING if index else tensor.ndim == 0
                if written or not fits:
                    raise WrongDevice(
                        f"`{self.name}` got `{name}` of shape {tuple(tensor.shape)} on "
                        f"{tensor.device} beside tensors on {NAME}."
                    )

    def note_waits(self, named: dict[str, Any]) -> None:
        """Count how often a GPU would make the program wait."""
        name = self.name
        if name in ("_local_scalar_dense", "equal"):
            note("value")
        elif name in SHAPED_BY_VALUES and named.get("output_size") is None:
            note(name)
        elif name in INDEXING and "values" in named:
            # To read at indices, torch has called `nonzero` and copied on the device already.
            indices = [index for index in named["indices"] if isinstance(index, Tensor)]
            note("to device", sum(not _is_here(index) for index in indices))
            # One value for all places of a mask is filled in without a look at where they are.
            if named["values"].numel() > 1 or named.get("accumulate"):
                kinds = (torch.bool, torch.uint8)
                note("nonzero", sum(index.dtype in kinds for index in indices))
        elif name.startswith("masked_fill") and _is_here(named["value"]):
            note("value")
        elif name == "where":
            tensors = [value for value in named.values() if isinstance(value, Tensor)]
            note("to device", sum(not _is_here(tensor) for tensor in tensors))


_known = functools.cache(_Operation)


def _kernel(operation: Any, *args: Any, **kwargs: Any) -> Any:
    """Compute any operation of the device on the CPU."""
    known = _known(operation)
    named = {**dict(zip(known.names, args, strict=False)), **kwargs}
    scalars = {
        name: torch.tensor(named[name], dtype=torch.float64 if type(named[name]) is float else None)
        for name in known.tensors
        if isinstance(named.get(name), known.numbers)
    }
    if scalars:
        named |= scalars
        args = tuple(named[name] for name in known.names[: len(args)])
    known.check(named)
    known.note_waits(named)
    if known.moves_no_data:
        # The CPU's kernels keep whatever device they are given.
        return operation._op_dk(torch._C.DispatchKey.CPU, *args, **kwargs)
    ours = [_each(value, _to_cpu) for value in args]
    ours_by_name = {name: _each(value, _to_cpu) for name, value in kwargs.items()}
    with _random_state() if known.random else contextlib.nullcontext():
        result = operation(*ours, **ours_by_name)
    on_cpu = {**dict(zip(known.names, ours, strict=False)), **ours_by_name}
    for name in known.written.values():
        tensor, computed = named[name], on_cpu[name]
        if isinstance(tensor, Tensor) and tensor.shape != computed.shape:
            _adopt(tensor, computed)
    if not known.returned:
        return None
    results = (result,) if len(known.returned) == 1 else result
    found = [
        _each(value, _from_cpu) if name is None else named[name]
        for name, value in zip(known.returned, results, strict=True)
    ]
    return found[0] if len(found) == 1 else tuple(found)


def _adopt(tensor: Tensor, computed: Tensor) -> None:
    """Let a tensor of the device have the memory and the shape of a tensor of the CPU."""
    storage = _from_cpu(computed).untyped_storage()
    place = computed.storage_offset(), computed.shape, computed.stride()
    set_ = aten.set_.source_Storage_storage_offset
    set_._op_dk(torch._C.DispatchKey.CPU, tensor, storage, *place)


def _resize(tensor: Tensor, size: list[int], *, memory_format: Any = None) -> Tensor:
    """Make room for a result; what was there is kept as far as it fits."""
    grown = torch.empty(size, dtype=tensor.dtype)
    if common := min(grown.numel(), tensor.numel()):
        grown.view(-1)[:common] = _to_cpu(tensor).reshape(-1)[:common]
    _adopt(tensor, grown)
    return tensor


def _copy(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """Copy between any devices."""
    if not _is_here(target):
        note("to cpu")
    elif not _is_here(source) and not non_blocking:
        note("to device")
    _to_cpu(target).copy_(_to_cpu(source))
    return target


def _zeros(size: list[int], **options: Any) -> Tensor:
    """Zeros for forward mode, which torch keeps without memory: these have some."""
    return torch.zeros(size, dtype=options["dtype"], device=NAME)


def _convolution(*args: Any) -> Tensor:
    return _kernel(aten.convolution.default, *args)


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *args: Any) -> Any:
    sizes = [grad.shape[1]]  # of the bias, whether or not there is one
    return _kernel(aten.convolution_backward.default, grad, x, weight, sizes, *args)


def _gru_cell(
    into: Tensor, hidden: Tensor, state: Tensor, *bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The step of a GRU, for which a GPU has an operation of its own."""
    gates = zip(into.chunk(3, -1), hidden.chunk(3, -1), strict=True)
    (reset, a), (update, b), (new, c) = gates
    biases = [None if each is None else each.chunk(3) for each in bias]
    assert not any(biases), "the biases are in the gates already"
    new = torch.tanh(new + torch.sigmoid(reset + a) * c)
    after = (state - new) * torch.sigmoid(update + b) + new
    return after, after


def _lowered(name: str, inner: Any) -> Callable[..., Any]:
    """An operation that autocast computes in its own dtype."""
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def cast(value: Any) -> Any:
        cast = _is_here(value) and value.dtype == torch.float32
        return value.to(torch.get_autocast_dtype(NAME)) if cast else value

    def lowered(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(key):
            return inner(*map(cast, args), **{key: cast(value) for key, value in kwargs.items()})

    return lowered


class _Generator(torch._C.Generator):
    """Takes the place of `torch.Generator`: one of the device is one of the CPU that says so."""

    here: ClassVar[weakref.WeakSet["_Generator"]] = weakref.WeakSet()

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        kind = torch.device(device)
        found = super().__new__(cls, device="cpu" if kind.type == NAME else kind)
        if kind.type == NAME:
            cls.here.add(found)
        return found

    @property
    def device(self) -> torch.device:
        return torch.device(NAME, 0) if self in self.here else super().device

    @classmethod
    def is_here(cls, given: torch._C.Generator) -> bool:
        """Whether it is one of the device; torch hands on the same generator as a new object."""
        return any(found._cdata == given._cdata for found in cls.here)


# The device draws random numbers as the CPU does from the same seed.
_default_generator = torch.Generator().manual_seed(0)


@contextlib.contextmanager
def _random_state() -> Iterator[None]:
    """Let the CPU draw from the device's random state."""
    before = torch.default_generator.get_state()
    torch.default_generator.set_state(_default_generator.get_state())
    try:
        yield
    finally:
        _default_generator.set_state(torch.default_generator.get_state())
        torch.default_generator.set_state(before)


def _clone_storage(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    """Copy a storage, as `copy.deepcopy` does: torch would look for an allocator of the device."""
    if storage.device.type != NAME:
        return _torch_clone_storage(storage)
    whole = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
    return whole.clone().untyped_storage()


def _synchronize(device: Any = None) -> None:
    note("synchronize")


def _backend() -> types.ModuleType:
    """What torch expects to find as `torch.standin`."""
    module: Any = types.ModuleType(NAME)
    module.is_available = module.is_initialized = lambda: True
    module._is_in_bad_fork = lambda: False
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module.synchronize = _synchronize
    module.device = lambda device=None: contextlib.nullcontext()
    module.manual_seed = module.manual_seed_all = _default_generator.manual_seed
    module.get_rng_state = lambda device=None: _default_generator.get_state()
    module.set_rng_state = lambda state, device=None: _default_generator.set_state(state)
    module.get_amp_supported_dtype = lambda: [torch.bfloat16]
    return module


_torch_clone_storage = torch.UntypedStorage.clone
_libraries: list[torch.library.Library] = []


def register() -> torch.device:
    """Make the device known to torch, once in a process, and return it."""
    if not _libraries:
        _setup_privateuseone_for_python_backend(NAME, backend_module=_backend())
        every, some = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
        _libraries.extend((every, some))
        every.fallback(_kernel, "PrivateUse1")
        some.impl("_copy_from", _copy, "PrivateUse1")
        some.impl("resize_", _resize, "PrivateUse1")
        some.impl("_efficientzerotensor", _zeros, "PrivateUse1")
        for bit in ("Conjugate", "Negative"):  # resolved by a copy otherwise, which copies first
            some.impl("_copy_from", torch.library.fallthrough_kernel, bit)
        some.impl("convolution_overrideable", _convolution, "PrivateUse1")
        some.impl("convolution_backward_overrideable", _convolution_backward, "PrivateUse1")
        for key in ("PrivateUse1", "AutogradPrivateUse1"):
            some.impl("_thnn_fused_gru_cell", _gru_cell, key)
        every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
        for name in LOWERED:
            inner = getattr(aten, name).default
            some.impl(name, _lowered(name, inner), "AutocastPrivateUse1")
        torch.UntypedStorage.clone = _clone_storage  # type: ignore[method-assign]
        torch.accelerator.synchronize = _synchronize
        torch.Generator = _Generator  # type: ignore[misc]
    return torch.device(NAME, 0)
