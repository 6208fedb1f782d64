"""Shards: checkpoints that all ranks write together, a folder in torch's distributed format.

`.metadata` says which file holds which part of which tensor. torch reads it with pickle, which may
run code; here it may name nothing but the classes that describe tensors.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict
from torch.distributed.checkpoint.state_dict_saver import save

from lit_pretrain.checkpoint.digests import file_digest, write_digests
from lit_pretrain.checkpoint.layout import SHARDED_ENTRIES, SHARDS_INDEX, CheckpointEntries
from lit_pretrain.errors import UserError, error_of_file
from lit_pretrain.files import check_plain_names

_DESCRIPTIONS = (
    "Metadata", "MetadataIndex", "TensorStorageMetadata", "TensorProperties",
    "ChunkStorageMetadata", "BytesStorageMetadata", "StorageMeta", "_MEM_FORMAT_ENCODING",
)  # fmt: skip
_ALLOWED = {
    *(("torch.distributed.checkpoint.metadata", name) for name in _DESCRIPTIONS),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib", "Path"),
    ("pathlib._local", "PosixPath"),  # Python 3.13
}


class OptimizerState(TypedDict):
    """Hold what `torch.optim.Optimizer.state_dict` returns, keyed by numbers or by names."""

    state: Mapping[Any, Mapping[str, Any]]
    """Moments of every parameter."""
    param_groups: list[dict[str, Any]]
    """Settings of every group; `params` lists its parameters."""


# ------------------------------------------------------------------ writing


class _ShardWriter(FileSystemWriter):
    def write_data(self, *args: Any) -> Any:
        """Raise the error of the file, which torch would leave behind on its way to other ranks."""
        try:
            return super().write_data(*args)
        except RuntimeError as error:
            if (hidden := error_of_file(error)) is None:
                raise
            raise hidden from error


def write_shards(checkpoint: Mapping[str, Any], folder: Path, group: Any = None) -> None:
    """Write the parts that this rank holds, and on rank 0 what is no tensor; all ranks call this.

    Args:
        checkpoint: As Lightning makes it: `state_dict` and `optimizer_states` hold parts of
            tensors.
        folder: The same on all ranks.
        group: Processes that write; None: those of the default group.

    Raises:
        OSError: A rank cannot write its part.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = dict(checkpoint)
    tensors = {"state_dict": entries.pop("state_dict")}
    for number, state in enumerate(entries.pop("optimizer_states", [])):
        tensors[f"optimizer_{number}"] = state
    try:
        save(tensors, storage_writer=_ShardWriter(folder), process_group=group)
    except CheckpointException as error:  # derives from BaseException
        causes = [cause for cause, _ in error.failures.values()]
        refused = [cause for cause in causes if isinstance(cause, OSError)]
        raise (refused or causes)[0] from error
    if torch.distributed.get_rank() == 0:
        torch.save(entries, folder / SHARDED_ENTRIES)


def seal_shards(folder: Path, group: Any = None) -> None:
    """Record the digests of a sharded checkpoint; all ranks call this.

    Every rank hashes what it has written.

    Args:
        folder: The checkpoint.
        group: As for `write_shards`.
    """
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    own = {path.name: file_digest(path) for path in folder.glob(f"__{rank}_*")}
    everybody: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(everybody, own, group)
    if rank == 0:
        digests = {name: digest for part in everybody for name, digest in part.items()}
        for path in folder.iterdir():
            if path.name not in digests:
                digests[path.name] = file_digest(path)
        write_digests(folder, digests)


# ------------------------------------------------------------------ reading


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if dtype or (module, name) in _ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which describes no tensor")


def read_index(folder: Path) -> Metadata:
    """Read the index of a sharded checkpoint without running code.

    Raises:
        UserError: It is missing or damaged, or holds something else.
    """
    file = folder / SHARDS_INDEX
    try:
        with file.open("rb") as opened:
            index = _IndexUnpickler(opened).load()
    # A damaged pickle may raise anything.
    except Exception as error:
        raise UserError(f"{file} is missing or damaged: {error or type(error).__name__}") from None
    if not isinstance(index, Metadata) or not isinstance(index.storage_data, dict):
        raise UserError(f"{file} is damaged: it is no index of shards")
    names = [getattr(part, "relative_path", None) for part in index.storage_data.values()]
    check_plain_names(names, str(file))
    return index


def damage_of_shards(folder: Path) -> str | None:
    """Describe what is wrong with a sharded checkpoint; None if every part of it is there.

    The content of shards is proved by their digests alone (`digests.py`).
    """
    if not (folder / SHARDED_ENTRIES).is_file():
        return f"its file {SHARDED_ENTRIES} is missing"
    try:
        entries = read_entries(folder)
        parts = read_index(folder).storage_data.values()
        needed: dict[str, int] = {}
        for part in parts:
            end = int(part.offset) + int(part.length)
            needed[part.relative_path] = max(end, needed.get(part.relative_path, 0))
    except UserError as error:
        return str(error)
    except (AttributeError, TypeError, ValueError) as error:
        return f"its {SHARDS_INDEX} is damaged ({error})"
    if not entries or not needed:
        return "it holds nothing"
    for name, size in needed.items():
        file = folder / name
        if not file.is_file():
            return f"its file {name} is missing"
        if file.stat().st_size < size:
            return f"its file {name} has {file.stat().st_size:,} bytes; it must have {size:,}"
    return None


def read_entries(folder: Path) -> Mapping[str, Any]:
    """Read all entries of a sharded checkpoint that are not sharded.

    Raises:
        UserError: They are missing or damaged.
    """
    return load_archive(folder / SHARDED_ENTRIES)


def load_archive(file: Path, *, mmap: bool = False, map_location: Any = "cpu") -> CheckpointEntries:
    """Load what `torch.save` wrote, tensors and primitives only.

    Args:
        file: The file.
        mmap: Map the tensors of the file instead of reading them.
        map_location: Device of the tensors, as for `torch.load`.

    Raises:
        UserError: It is missing or damaged, or holds something else.
    """
    try:
        loaded = torch.load(file, map_location=map_location, weights_only=True, mmap=mmap)
    # A damaged archive or pickle may raise anything; running out of memory is another matter.
    except (MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{file} cannot be loaded: {reason}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{file} holds a {type(loaded).__name__} and no checkpoint")
    return loaded


class _ShardReader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return read_index(Path(self.path))


def read_shards(folder: Path, *, only: set[str] | None = None) -> Mapping[str, Any]:
    """Read the tensors of a sharded checkpoint, whole, on the CPU of this process.

    Args:
        folder: The checkpoint.
        only: Top-level entries to read ("state_dict"); None reads all.

    Raises:
        UserError: A shard is missing or damaged.
    """
    state: dict[str, Any] = {}
    planner = _EmptyStateDictLoadPlanner(keys=only)
    try:
        _load_state_dict(state, storage_reader=_ShardReader(folder), planner=planner, no_dist=True)
    except CheckpointException as error:  # derives from BaseException
        reasons = {f"{type(cause).__name__}: {cause}" for cause, _ in error.failures.values()}
        raise UserError(f"{folder} cannot be read: {'; '.join(sorted(reasons))}") from error
    return state


def consolidated(folder: Path) -> CheckpointEntries:
    """Consolidate a sharded checkpoint: a run goes on from it exactly without sharding.

    Args:
        folder: A complete sharded checkpoint.
    """
    tensors = read_shards(folder)
    checkpoint = dict(read_entries(folder))
    checkpoint["state_dict"] = tensors["state_dict"]
    states: list[OptimizerState] = []
    while (name := f"optimizer_{len(states)}") in tensors:
        states.append(by_position(tensors[name]))
    checkpoint["optimizer_states"] = states
    return checkpoint


def by_position(named: OptimizerState) -> OptimizerState:
    """Key an optimizer state by the positions that an unsharded optimizer counts, not by names."""
    names = [name for group in named["param_groups"] for name in group["params"]]
    position = {name: i for i, name in enumerate(names)}
    state = named.get("state", {})  # torch's format drops empty entries, as of plain SGD
    return {
        "state": {position[name]: value for name, value in state.items()},
        "param_groups": [
            {**group, "params": [position[name] for name in group["params"]]}
            for group in named["param_groups"]
        ],
    }
