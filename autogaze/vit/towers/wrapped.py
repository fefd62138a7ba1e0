"""Modules as users really have them: wrapped, hooked, sharded, with layers swapped for others.

GazedViT runs some parts of a ViT by its own formula, because only the chosen patches pass through them: the whole
model, blocks, attention, embeddings. Everything below them (linear layers, norms, MLPs) is called as a module, so
adapters, quantised layers, pruning, parametrisations and hooks on it act as in the dense model. This file is about the
parts with a formula: `run` calls a formula with the hooks that hang on the part, `check_part` refuses by name what
a formula would skip, and `inner` looks through wrappers that do not change what the model computes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Hooks that never look at the shape of what passes: they bring weights into place (pruning, weight norm, sharding),
# or record outputs when the dense model is asked for them.
_CHECKED: WeakKeyDictionary[nn.Module, dict[int, bool]] = WeakKeyDictionary()
SHAPELESS = ("torch.nn.utils.", "torch.distributed.", "torch.ao.", "transformers.")

# A module of another library, whose attributes are known from its class; torch types each as `Tensor | Module`.
Foreign: TypeAlias = Any


@dataclass(frozen=True)
class Part:
    """A module that GazedViT runs by its own formula."""

    path: str  # inside the ViT; "" is the ViT itself
    module: nn.Module
    known: tuple[str, ...] = ()  # names of classes that the formula is for; empty: any class of its library
    hooked: bool = True  # the formula is run with `run`, and shows hooks what they see in the dense model
    block: bool = False  # one of the blocks that the ViT is a stack of


def inner(model: nn.Module) -> nn.Module:
    """The ViT inside wrappers that compute the same: compiled, data parallel, averaged, PEFT.

    Raises:
        ValueError: if a wrapper changes what the model computes, or has hooks, which would be skipped.
    """
    while (found := _unwrapped(model)) is not None:
        if (word := _first_hook(model)) is not None:
            raise ValueError(f"{_name(model)} has {word}, which GazedViT would skip; put it on the ViT's blocks")
        model = found
    return model


def distributed_wrapper(model: nn.Module) -> nn.Module | None:
    """A DistributedDataParallel of several processes around the ViT: its gradients are only averaged if it is called
    itself."""
    while (found := _unwrapped(model)) is not None:
        group = getattr(model, "process_group", None)
        if isinstance(model, nn.parallel.DistributedDataParallel) and group is not None and group.size() > 1:
            return model
        model = found
    return None


def _unwrapped(model: Foreign) -> nn.Module | None:
    name, module = type(model).__name__, type(model).__module__
    if name == "OptimizedModule" and module.startswith("torch."):
        return model._orig_mod
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return model.module
    if name == "AveragedModel" and module.startswith("torch."):
        return model.module
    if name == "FullyShardedDataParallel":
        raise ValueError(
            "GazedViT cannot look into FullyShardedDataParallel, which flattens weights; shard with "
            "torch.distributed.fsdp.fully_shard, before or after GazedViT"
        )
    if module.startswith("peft."):
        config = getattr(model, "active_peft_config", None)
        if getattr(config, "is_prompt_learning", False):
            raise ValueError(
                f"GazedViT cannot use {name} with {type(config).__name__}: it adds tokens of its own; LoRA and other "
                "adapters of layers work"
            )
        if hasattr(model, "get_base_model"):
            return model.get_base_model()
        if hasattr(model, "peft_config") and isinstance(getattr(model, "model", None), nn.Module):
            return model.model  # a tuner (LoraModel) without its PeftModel
    return None


def plain_class(module: nn.Module) -> type:
    """A module's class, without what torch mixes into it when it is sharded or parametrised."""
    kind = type(module)
    while kind.__module__.startswith("torch.") and kind.__name__.startswith(("FSDP", "Parametrized", "Replicate")):
        if len(kind.__bases__) < 1 or kind.__bases__[-1] is nn.Module:
            break
        kind = kind.__bases__[-1]
    return kind


def opened(module: Foreign) -> Foreign:
    """A part inside `torch.compile`, which a formula replaces: it computes the same."""
    while type(module).__name__ == "OptimizedModule" and type(module).__module__.startswith("torch."):
        module = module._orig_mod
    return module


def check_part(part: Part, library: str) -> None:
    """Refuse a part that its formula would not be true to.

    Raises:
        ValueError: naming the part and what is on it.
    """
    module, kind = part.module, plain_class(part.module)
    where = f"{part.path} of this ViT" if part.path else "this ViT"
    known = kind.__name__ in part.known if part.known else kind.__module__.startswith(library + ".")
    if not known:
        own = f"; it knows {', '.join(part.known)}" if part.known else ""
        raise ValueError(
            f"{where} is a {kind.__module__}.{kind.__name__}, which GazedViT does not know{own}: it runs this part by "
            "its own formula and would skip what was put in its place; adapt the linear layers inside it instead"
        )
    if (method := _replaced_method(module)) is not None:
        raise ValueError(
            f"{method}() of {where} ({kind.__name__}) was replaced on the instance, which GazedViT would skip: wrap "
            "the GazedViT instead, or change the linear layers inside"
        )
    if (word := _first_hook(module, backward_only=part.hooked)) is not None:
        raise ValueError(
            f"{where} ({kind.__name__}) has {word}, which GazedViT would skip: it runs this part by its own formula. "
            "Remove it, or put it on a block or on a layer inside"
        )


def _replaced_method(module: nn.Module) -> str | None:
    """A method of the library's that was replaced on this instance; those of `nn.Module` compute nothing."""
    for name, value in vars(module).items():
        computes = name == "forward" or not hasattr(nn.Module, name)
        if computes and callable(value) and inspect.isroutine(getattr(type(module), name, None)):
            return name
    return None


def run(module: nn.Module, formula: Callable[..., Any], *arguments: Any) -> Any:
    """A formula in place of a module's `forward`, with the hooks that hang on the module."""
    if not module._forward_pre_hooks and not module._forward_hooks:
        return formula(module, *arguments)
    for key, hook in list(module._forward_pre_hooks.items()):
        if key in module._forward_pre_hooks_with_kwargs:
            result = hook(module, arguments, {})
            arguments = arguments if result is None else result[0]
        else:
            result = hook(module, arguments)
            if result is not None:
                arguments = result if isinstance(result, tuple) else (result,)
    output = formula(module, *arguments)
    for key, hook in list(module._forward_hooks.items()):
        with_kwargs = key in module._forward_hooks_with_kwargs
        result = hook(module, arguments, {}, output) if with_kwargs else hook(module, arguments, output)
        output = output if result is None else result
    return output


def watched(model: nn.Module) -> bool:
    """Whether hooks hang anywhere in a model that may look at shapes: they must see images, not packed rows."""
    return any(True for module in model.modules() for _ in _user_hooks(module))


def projected(layer: Foreign, patches: Tensor) -> Tensor:
    """Patches (N, 3, P, P) through a patch embedding's own layer, (N, D).

    A plain convolution is computed as the matrix product that it is; anything else is called as it is.
    """
    if is_plain(layer, nn.Conv2d):
        weight = layer.weight
        return nn.functional.linear(patches.flatten(1).to(weight.dtype), weight.flatten(1), layer.bias)
    found = layer(patches.to(floating_dtype(layer)))
    return found.flatten(1)


def check_projection(layer: Foreign, patch: int, path: str) -> None:
    """Refuse a patch embedding's layer that does not see one patch at a time.

    Raises:
        ValueError: naming it.
    """
    size = (patch, patch)
    conv = plain_class(layer) is nn.Conv2d
    if conv and not (tuple(layer.kernel_size) == tuple(layer.stride) == size and _padding(layer) == (0, 0)):
        raise ValueError(
            f"GazedViT needs square patches that do not overlap, got {tuple(layer.kernel_size)} every "
            f"{tuple(layer.stride)} px in {path}"
        )
    if not conv and not _sees_one_patch(layer, patch):
        raise ValueError(
            f"{path} of this ViT is a {plain_class(layer).__name__} that does not turn every patch alone into one "
            "token: patches cannot be left out in front of it"
        )


def is_plain(layer: nn.Module, kind: type) -> bool:
    """Whether a layer is torch's own with nothing on it: no hook, no swapped class or forward, an ordinary weight."""
    return (
        type(layer) is kind
        and not layer._forward_pre_hooks
        and not layer._forward_hooks
        and not layer._backward_hooks
        and not layer._backward_pre_hooks
        and "forward" not in layer.__dict__
        and type(layer.weight) in (Tensor, nn.Parameter)
    )


def floating_dtype(layer: nn.Module, model: nn.Module | None = None) -> torch.dtype:
    """The dtype that a layer takes: of its first floating weight (quantised weights are integers), or its model's."""
    for module in (layer, model):
        for tensor in () if module is None else (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point() and tensor.element_size() > 1:
                return tensor.dtype
    return torch.get_default_dtype()


def checkpointed(save: bool, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Call a function; where the ViT's owner asked for gradient checkpointing, without keeping what is inside."""
    if save and torch.is_grad_enabled():
        return checkpoint(function, *arguments, use_reentrant=False)
    return function(*arguments)


def _sees_one_patch(layer: nn.Module, patch: int) -> bool:
    """Try it: four patches side by side, and each alone."""
    checked = _CHECKED.setdefault(layer, {})
    if patch not in checked:
        training = [(module, module.training) for module in layer.modules()]
        tensor = next((t for t in (*layer.parameters(), *layer.buffers())), None)
        device = tensor.device if tensor is not None else torch.device("cpu")
        if device.type == "meta":
            return True
        values = torch.linspace(-1, 1, 3 * 4 * patch * patch, device=device).mul(37).sin()
        image = values.view(1, 3, 2 * patch, 2 * patch).to(floating_dtype(layer))
        patches = image.unflatten(3, (2, patch)).unflatten(2, (2, patch)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        layer.eval()
        try:
            with torch.no_grad():
                whole, alone = layer(image), layer(patches)
        finally:
            for module, mode in training:
                module.training = mode
        fits = alone.ndim == 4 and alone.shape[2:] == (1, 1) and whole.shape[2:] == (2, 2)
        checked[patch] = bool(
            fits and torch.allclose(whole.flatten(2).mT[0], alone.flatten(1), atol=1e-2 * float(alone.abs().max()))
        )
    return bool(checked[patch])


def _padding(layer: Foreign) -> tuple[int, ...]:
    return (0, 0) if layer.padding == "valid" else (tuple(layer.padding) if layer.padding != "same" else (-1, -1))


def _user_hooks(module: nn.Module) -> Iterator[Any]:
    """Forward hooks that are not known to leave shapes alone."""
    for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
        home = getattr(hook, "__module__", None) or type(hook).__module__
        if not home.startswith(SHAPELESS):
            yield hook


def _first_hook(module: nn.Module, backward_only: bool = False) -> str | None:
    """The first hook of a module that would be skipped, in words."""
    for hook in () if backward_only else _user_hooks(module):
        return f"a forward hook ({_name(hook)})"
    for hook in (*module._backward_pre_hooks.values(), *module._backward_hooks.values()):
        return f"a backward hook ({_name(hook)})"
    return None


def _name(thing: Any) -> str:
    kind = type(thing)
    return getattr(thing, "__qualname__", None) or f"{kind.__module__}.{kind.__qualname__}"
