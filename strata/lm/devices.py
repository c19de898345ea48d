"""A model that lies on several devices, as transformers' `device_map` spreads it: where its weights are."""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def device_of(model: "PreTrainedModel") -> torch.device:
    """The device where tokens go in: the model's own; of one that is spread over several, the first that computes."""
    devices = list(dict.fromkeys((getattr(model, "hf_device_map", None) or {}).values()))
    if len(devices) < 2 and devices != ["disk"]:
        return model.device
    computing = [device for device in devices if device not in ("cpu", "disk")]  # these two only keep weights for them
    return torch.device(computing[0] if computing else "cpu")


def weight_of(module: nn.Module, name: str = "weight") -> Tensor:
    """A parameter of ``module`` itself, with its numbers also where they wait on the disk or in memory."""
    parameter = getattr(module, name)
    if not parameter.is_meta:
        return parameter.detach()
    spread: Any = module  # accelerate gives it a hook that knows where its weights are
    return spread._hf_hook.weights_map[name].detach()


def gathered(module: nn.Module) -> nn.Module:
    """A copy of a ``module`` without children that holds its own weights, wherever they lie."""
    if not hasattr(module, "_hf_hook"):
        return copy.deepcopy(module)
    alone = copy.copy(module)
    for name in ("forward", "_old_forward", "_hf_hook"):  # how accelerate brings weights and inputs to one device
        alone.__dict__.pop(name, None)
    weights = {
        name: None if parameter is None else nn.Parameter(weight_of(module, name).clone(), False)
        for name, parameter in module._parameters.items()
    }
    alone.__dict__.update(_parameters=weights, _buffers=dict(module._buffers))
    return alone
