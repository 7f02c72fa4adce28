"""Every private name of torch that this project uses; other files take them from here.

Written for torch 2.13.0, and checked with 2.14.1. Torch may move or remove these names in any
version, so a failing import says which versions were tested. Names that only `tasks` needs are
loaded at first use: without them, everything else works.
"""

import contextlib
import functools
import importlib
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

if TYPE_CHECKING:
    from torch._higher_order_ops.while_loop import while_loop
    from torch._subclasses.fake_tensor import FakeTensorMode

TESTED = "2.13.0 and 2.14.1"


def missing(error: ImportError | AttributeError) -> ImportError:
    """Build the error that says which name torch lacks, and what to do."""
    return ImportError(
        f"torch {torch.__version__} lacks a private name that this project uses ({error}). "
        f"Tested versions of torch: {TESTED}. Install one of them, as in `pip install "
        "'torch>=2.13,<2.15'`, or adapt `solvers/torch_internals.py`."
    )


try:
    # These imports cost nothing and warn of nothing: `import torch` has loaded their modules.
    from torch._C import (
        _are_functorch_transforms_active,
        _get_dispatch_mode,
        _TorchDispatchModeKey,
    )

    # `torch.compiler.disable` would switch the compiler off for `f` too, and loads all of it.
    from torch._C._dynamo.eval_frame import (
        _FrameAction,
        _FrameExecStrategy,
        set_code_exec_strategy,
        set_eval_frame,
    )
    from torch._C._functorch import (
        get_unwrapped,
        is_batchedtensor,
        is_functorch_wrapped_tensor,
        is_legacy_batchedtensor,
        maybe_current_level,
        maybe_get_level,
    )
    from torch._functorch import eager_transforms
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.utils import _pytree as pytree
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._python_dispatch import _disable_current_modes as modes_disabled

    # An assertion that is part of a graph.
    assert_async: Any = getattr(torch, "_assert_async")  # noqa: B009
    # Whether `torch.jit.trace` is at work.
    is_tracing: Any = getattr(torch.jit, "is_tracing")  # noqa: B009
    layer_norm_backward: Any = torch.ops.aten.native_layer_norm_backward.default
    # Whether a transform of `torch.func` is in force.
    transforms_in_force = _are_functorch_transforms_active
    set_fwd_grad_enabled = forward_ad._set_fwd_grad_enabled
    _PROXY = _TorchDispatchModeKey.PROXY
    # Attributes that functions below read: report a missing one now, not at its first use.
    for _owner, _name in (
        (forward_ad, "_current_level"),
        (eager_transforms, "JVP_NESTING"),
        (Tensor, "_version"),
        (torch.UntypedStorage, "_cdata"),
        (nn.Module, "_compiled_call_impl"),
        (nn.Module(), "_parameters"),
        (nn.Module(), "_buffers"),
    ):
        getattr(_owner, _name)
except (ImportError, AttributeError) as error:
    raise missing(error) from error

_OPTIONAL = {
    "FakeTensorMode": "torch._subclasses.fake_tensor",
    "while_loop": "torch._higher_order_ops.while_loop",
}

__all__ = [
    "FakeTensor",
    "FakeTensorMode",
    "TorchDispatchMode",
    "assert_async",
    "compiled_with_constants",
    "cpu_attention",
    "dual_level_in_force",
    "get_unwrapped",
    "has_compiled_part",
    "is_batchedtensor",
    "is_functorch_wrapped_tensor",
    "is_legacy_batchedtensor",
    "is_tracing",
    "item_operator",
    "layer_norm_backward",
    "load_forward_mode",
    "maybe_current_level",
    "maybe_get_level",
    "modes_disabled",
    "nested_dual_level",
    "one_graph_asked_for",
    "plain_attention",
    "pytree",
    "records_without_values",
    "set_code_exec_strategy",
    "set_eval_frame",
    "set_fwd_grad_enabled",
    "skip_this_frame",
    "tensor_tables",
    "transforms_in_force",
    "version_of",
    "while_loop",
]


def dual_level_in_force() -> bool:
    """Whether the caller is within a `forward_ad.dual_level`, that is, forward mode is on."""
    return forward_ad._current_level >= 0


@contextlib.contextmanager
def nested_dual_level() -> Iterator[None]:
    """Let `torch.func.jvp` nest inside a plain dual level, as it nests inside itself.

    Torch allows one dual level. `torch.func.jvp` opens it unless it counts an outer `jvp`, so this
    raises its count. Derivatives are kept apart, since each `jvp` wraps its tensors.
    """
    plain = dual_level_in_force() and eager_transforms.JVP_NESTING == 0
    eager_transforms.JVP_NESTING += plain
    try:
        yield
    finally:
        eager_transforms.JVP_NESTING -= plain


@functools.cache
def load_forward_mode() -> None:
    """Import torch's formulas for forward mode, without the warnings of their first import.

    These are about torch's own use of `torch.jit.script`: a DeprecationWarning in 2.13, a
    FutureWarning in 2.14.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            importlib.import_module("torch._decomp.decompositions_for_jvp")
        except ImportError as error:
            raise missing(error) from error


def records_without_values() -> bool:
    """Whether operations are traced as by `make_fx`, so that tensors have no values to read."""
    return _get_dispatch_mode(_PROXY) is not None


def skip_this_frame(function: Any) -> None:
    """Keep Dynamo from compiling a function, but not the functions that it calls."""
    strategy = _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.DEFAULT)
    set_code_exec_strategy(function.__code__, strategy)


def one_graph_asked_for() -> bool:
    """Whether this is traced by `torch.export`, or by `torch.compile` with `fullgraph=True`."""
    if not torch.compiler.is_compiling():
        return False
    return torch.compiler.is_exporting() or _no_break_allowed()


def _no_break_allowed() -> bool:
    try:
        from torch._dynamo.symbolic_convert import InstructionTranslator  # loaded by now

        return bool(InstructionTranslator.current_tx().one_graph)
    except (ImportError, AttributeError) as error:
        raise missing(error) from error


# Dynamo calls this while it traces, instead of tracing it.
_no_break_allowed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def compiled_with_constants(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function that torch compiled, with numbers as constants if that is needed.

    Dynamo makes a symbol of a number that is another one than at the first call. No loop takes a
    symbol that is not an integer: then the number becomes a constant of a graph of its own.
    """
    try:
        from torch._dynamo import config
        from torch._dynamo.exc import TorchRuntimeError

        patch = config.patch
    except (ImportError, AttributeError) as error:
        raise missing(error) from error
    with contextlib.suppress(AssertionError, TorchRuntimeError):
        return call(*args, **kwargs)
    with patch(specialize_float=True):
        return call(*args, **kwargs)


def version_of(tensor: Tensor) -> int:
    """How often a tensor was changed in place; always 0 for inference tensors."""
    return 0 if tensor.is_inference() else tensor._version


def tensor_tables(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """The dicts of a module's own parameters and buffers, without those of submodules."""
    return module._parameters, module._buffers


def has_compiled_part(module: nn.Module) -> bool:
    """Whether `Module.compile` was called on the module or a submodule."""
    return any(part._compiled_call_impl is not None for part in module.modules())


def has_hooks(module: nn.Module) -> bool:
    """Whether a forward hook is registered on the module or a submodule."""
    return any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def item_operator() -> Any:
    """The operator by which Python reads a number from a tensor."""
    try:
        return torch.ops.aten._local_scalar_dense.default
    except AttributeError as error:
        raise missing(error) from error


def cpu_attention() -> tuple[Any, Any]:
    """The operators of attention on the CPU: forward and backward."""
    try:
        forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return forward, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    except AttributeError as error:
        raise missing(error) from error


def plain_attention() -> Any:
    """The operator that computes attention by its formula, which has derivatives of any order."""
    try:
        return torch.ops.aten._scaled_dot_product_attention_math
    except AttributeError as error:
        raise missing(error) from error


def __getattr__(name: str) -> Any:
    """Load a name that only `tasks` needs, at its first use."""
    if name not in _OPTIONAL:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_OPTIONAL[name]), name)
    except (ImportError, AttributeError) as error:
        raise missing(error) from error
