"""What a parsed config means: data, network, adapter and its cost, length in steps.

Everything here is computed before weights or a Trainer exist, so that a mistake costs seconds.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, NamedTuple

import torch
from jsonargparse import Namespace

from lit_pretrain.adapter import LoRA
from lit_pretrain.adapter.lora import AdaptedLinear
from lit_pretrain.adapter.nf4 import BLOCK, SCALE_BLOCK
from lit_pretrain.checkpoint.network import model_config
from lit_pretrain.cli.command.arguments import read_configs
from lit_pretrain.cli.command.parser import raw_option
from lit_pretrain.data.data_module import BaseData
from lit_pretrain.data.text.text_data import TextData
from lit_pretrain.errors import UserError, cause_of
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.parameter_scales import transferred_shape
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.optim import OptimizerRecipe, recipe_of
from lit_pretrain.optim.transferred_groups import check_rules
from lit_pretrain.parallel.mesh import Parallel
from lit_pretrain.parallel.strategy import parallel_of
from lit_pretrain.scaling.flops import flops_per_token
from lit_pretrain.step_size import MeshSizes
from lit_pretrain.transfer import Transfer


class AdapterCost(NamedTuple):
    """Sizes of training with an adapter, without activations.

    Bytes are as in 32-true and bf16-mixed, which keep weights in fp32.
    """

    matrices: int
    """Adapted matrices."""
    trained: int
    """Parameters that are trained."""
    quantized: int
    """Parameters of the network that are kept in four bits."""
    total: int
    """Parameters of the network without the adapter."""
    weight_bytes: int
    """Weights of network and adapter."""
    state_bytes: int
    """Gradients and AdamW's two moments."""
    full_bytes: int
    """Weights, gradients and moments if everything were trained."""

    def line(self, adapter: LoRA) -> str:
        """Write all of it in one line."""
        kind = ("DoRA" if adapter.dora else "LoRA") + (" on NF4" if adapter.quantize else "")
        return (
            f"adapter: {kind}, rank {adapter.rank}, on {self.matrices} matrices: {self.trained:,}"
            f" of {self.total:,} parameters trained ({self.trained / self.total:.2%}) | weights"
            f" {_mb(self.weight_bytes)}, gradients and moments {_mb(self.state_bytes)} (all"
            f" trained: {_mb(self.full_bytes)} together)"
        )


def adapter_cost(shape: ModelConfig, adapter: LoRA) -> AdapterCost:
    """Count what an adapter of a network costs, without memory of its own."""
    with torch.device("meta"):
        net = Transformer(shape)
    total = sum(p.numel() for p in net.parameters())
    # Quantisation would need the weights; its size follows from their number.
    plain = LoRA(**{**adapter.__dict__, "quantize": None})
    names = plain.apply(net)
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    weights = sum(t.numel() * 4 for t in net.state_dict().values())
    quantized = 0
    if adapter.quantize is not None:
        for module in net.modules():
            if isinstance(module, AdaptedLinear):
                count = module.weight.numel()
                quantized += count
                blocks = -(-count // BLOCK)
                weights -= 4 * count - (-(-count // 2) + blocks + 4 * -(-blocks // SCALE_BLOCK) + 4)
    return AdapterCost(len(names), trained, quantized, total, weights, 12 * trained, 16 * total)


def _mb(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


# ---------------------------------------------------------------- data


def names_class(args: list[str], saved: Mapping[str, Any] | None = None) -> bool:
    """Tell whether raw arguments, a file among them, or a saved config name a class of data."""
    if saved is not None and "class_path" in saved.get("data", {}):
        return True
    for config in read_configs(args):
        data = config.content.get("data")
        if isinstance(data, str) or (isinstance(data, dict) and "class_path" in data):
            return True
    return (
        raw_option(args, "--data") is not None or raw_option(args, "--data.class_path") is not None
    )


DATA_RIVALS = (
    ("data.global_batch_tokens", "data.global_batch_rows"),
    ("data.global_batch_tokens", "data.batch_schedule"),
    ("data.path", "data.sources"),
    ("data.weights", "data.temperature"),
)
"""Options of data that say the same thing in two ways, of which one may be given."""


def settings_of(data: Any) -> Any:
    """Return the settings in the `data` of a config, parsed or plain.

    A class that was given by its name alone has none.
    """
    return data.get("init_args", {}) if "class_path" in data else data


def build(data: Namespace, *, here: bool = True) -> BaseData:
    """Build the data module of a parsed config.

    Args:
        data: The `data` of the config.
        here: Whether its files must be on this machine.

    Raises:
        UserError: Its class is none of ours, its settings contradict each other, or a file is
            missing.
    """
    settings = settings_of(data)
    values = settings.as_dict() if isinstance(settings, Namespace) else dict(settings)
    if "class_path" not in data:
        return TextData(**values)  # whose dataset may lie in an object store
    module, _, name = data["class_path"].rpartition(".")
    cls = getattr(import_module(module), name)
    if not (isinstance(cls, type) and issubclass(cls, BaseData)):
        raise UserError(
            f"data.class_path={data['class_path']!r} is not one of the data classes of"
            " lit_pretrain.data"
        )
    built = cls(**values)
    if here:
        built.check_files()
    return built


# ---------------------------------------------------------------- network and adapter


def net_of(config: Namespace) -> ModelConfig:
    """Read the shape of the network from a parsed config."""
    values = config.model.net
    return values if isinstance(values, ModelConfig) else model_config(values.as_dict())


def transfer_of(config: Namespace) -> Transfer | None:
    """Read the base of a transfer from a parsed config."""
    values = config.model.transfer
    if values is None or isinstance(values, Transfer):
        return values
    return Transfer(**values.as_dict())


def transferred_net(config: Namespace) -> ModelConfig:
    """Read the shape of the network as its transfer changes it, if it has one.

    Raises:
        UserError: The network or the optimizer has no rule for a transfer.
    """
    net, transfer = net_of(config), transfer_of(config)
    if transfer is not None:
        check_rules(optimizer_of(config))
    return transferred_shape(net, transfer)


def mesh_of(config: Namespace, devices: int) -> MeshSizes | None:
    """Read the mesh of a parsed config over some devices; None where one axis is no mesh.

    Raises:
        UserError: Its sizes do not make up the devices.
    """
    parallel = parallel_in(config)
    return None if parallel is None else parallel.sizes(devices)


def parallel_in(config: Namespace) -> Parallel | None:
    """Read how a parsed config divides its devices; None where we shard no network."""
    values = config.parallel
    given = Parallel(**values.as_dict()) if isinstance(values, Namespace) else values
    return parallel_of(config.trainer.strategy, given)


def adapter_of(config: Namespace) -> LoRA | None:
    """Read the adapter from a parsed config."""
    values = config.model.adapter
    return values if values is None or isinstance(values, LoRA) else LoRA(**values.as_dict())


def instantiate(values: Any, setting: str) -> Any:
    """Make what a parsed config describes by class_path and init_args, if it is not made yet.

    Args:
        values: The value of the setting.
        setting: Its dotted name.

    Raises:
        UserError: The constructor raises.
    """
    if not isinstance(values, Namespace):
        return values
    try:
        return _factory(values)()
    except UserError:
        raise
    except Exception as error:  # whatever a class of the user's raises
        raise UserError(
            f"{setting}={values.class_path!r} could not be made: {cause_of(error)}"
        ) from error


def _factory(values: Namespace) -> functools.partial[Any]:
    """Bind the class that a parsed config names to its options."""
    module, _, name = str(values.class_path).rpartition(".")
    arguments = values.get("init_args")
    return functools.partial(
        getattr(import_module(module), name),
        **(arguments.as_dict() if isinstance(arguments, Namespace) else arguments or {}),
    )


def optimizer_of(config: Namespace) -> OptimizerRecipe:
    """Make the recipe of the optimizer in a parsed config; it may name a class of torch's kind."""
    values = config.model.optimizer
    if not isinstance(values, Namespace):
        return recipe_of(values)
    make = _factory(values)
    if isinstance(make.func, type) and issubclass(make.func, OptimizerRecipe):
        recipe: OptimizerRecipe = instantiate(values, "model.optimizer")
        return recipe
    return recipe_of(make)


def adapter_parameters(config: Namespace) -> int | None:
    """Count the parameters of its adapter; None without one."""
    adapter = adapter_of(config)
    return None if adapter is None else adapter_cost(net_of(config), adapter).trained


def training_flops(config: Namespace, *, seq_len: int) -> float:
    """Count the FLOPs of training on one token.

    Args:
        config: Parsed config.
        seq_len: Inputs per row.
    """
    return flops_per_token(
        net_of(config), seq_len, adapter_parameters=adapter_parameters(config)
    ).training


# ---------------------------------------------------------------- numbers


def check_finite(config: Mapping[str, Any]) -> None:
    """Refuse numbers in a resolved config that are not finite, wherever they stand.

    Raises:
        UserError: Names each of them.
    """
    found = [f"{name}={value}" for name, value in _numbers("", config) if not math.isfinite(value)]
    if found:
        raise UserError(f"{', '.join(found)}: settings must be finite numbers")


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Yield all floats of a plain value with their dotted names."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _numbers(f"{name}.{key}".lstrip("."), entry)
    elif isinstance(value, (list, tuple)):
        for i, entry in enumerate(value):
            yield from _numbers(f"{name}[{i}]", entry)
    elif isinstance(value, float):
        yield name, value


# ---------------------------------------------------------------- length


UNITS = ("max_steps", "max_epochs", "max_tokens", "max_flops")


def resolve_length(config: Namespace, data: BaseData) -> None:
    """Let `max_steps` say it, and nothing else.

    Args:
        config: Parsed config; it is changed.
        data: Its data.

    Raises:
        UserError: The length is given in no unit or in several, or is not positive.
    """
    given = {name: config[name] for name in UNITS if config[name] is not None}
    if not given:
        defaults = {"max_steps": data.default_steps, "max_epochs": data.default_epochs}
        given = {name: value for name, value in defaults.items() if value is not None}
    if len(given) != 1:
        raise UserError(
            "give exactly one of max_steps, max_epochs, max_tokens and max_flops; found"
            f" {given or 'none'}"
        )
    name, value = next(iter(given.items()))
    if not 0 < value < math.inf:
        raise UserError(f"{name}={value} must be positive and finite")
    if name == "max_steps":
        steps = int(value)
    elif name == "max_epochs":
        steps = data.steps_of(value)
    else:
        tokens = (
            value / training_flops(config, seq_len=data.seq_len) if name == "max_flops" else value
        )
        steps = data.batch_tokens.steps(tokens)
    config.max_steps = steps
    config.max_epochs = config.max_tokens = config.max_flops = None
