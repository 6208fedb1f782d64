"""Matrix exchange: sharded matrices travel to one rank each, and what it makes of them comes back.

Muon needs whole matrices. Gathering all of them on every rank would move and compute everything as
often as there are ranks. Here every matrix has one owner, to whom the other ranks send their parts
and who returns to each rank its part of the update: two exchanges between all ranks, of a share of
the matrices each.

A parameter of more than two dimensions is a stack of matrices. Ranks that hold different matrices
of it have nothing to exchange, unless all ranks keep a note of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from lit_pretrain.update_work import Work, assign_owners


class MatrixPart(NamedTuple):
    """The box that a rank holds of whole matrices."""

    begin: tuple[int, ...]
    shape: tuple[int, ...]
    whole: tuple[int, ...]
    """Shape of the matrices: of those that the rank holds parts of, or of the parameter."""
    stack: tuple[int, ...]
    """Says which matrices of the parameter they are."""
    copy: int
    """Ranks that hold a copy of the parameter together have the same number."""

    @property
    def size(self) -> int:
        """Count its elements."""
        return math.prod(self.shape)

    def of(self, whole: Tensor) -> Tensor:
        """Cut this part out of the whole matrices."""
        for axis, (begin, size) in enumerate(zip(self.begin, self.shape, strict=True)):
            whole = whole.narrow(axis, begin, size)
        return whole


def part_of(parameter: DTensor, *, together: bool = False) -> MatrixPart:
    """Return the part of a parameter that this rank holds.

    Args:
        parameter: A matrix or a stack of them.
        together: Whether all matrices of a stack have to come together.
    """
    mesh, placements = parameter.device_mesh, parameter.placements
    coordinates = mesh.get_coordinate()
    assert coordinates is not None
    begin, shape, copy = [0] * parameter.ndim, list(parameter.shape), 0
    # FSDP divides what tensor parallelism has divided already, although its axis comes first: torch
    # marks it by a factor.
    for axis in sorted(
        range(mesh.ndim), key=lambda axis: hasattr(placements[axis], "split_factor")
    ):
        coordinate, devices = coordinates[axis], mesh.size(axis)
        if placements[axis].is_replicate():
            copy = copy * devices + coordinate
            continue
        dim = cast("Any", placements[axis]).dim
        size = -(-shape[dim] // devices)
        first = min(coordinate * size, shape[dim])
        begin[dim] += first
        shape[dim] = min(size, shape[dim] - first)
    assert tuple(shape) == parameter.to_local().shape, (placements, shape)
    if together:
        return MatrixPart(tuple(begin), tuple(shape), tuple(parameter.shape), (), copy)
    stacked = parameter.ndim - 2
    return MatrixPart(
        begin=(*[0] * stacked, *begin[stacked:]),
        shape=tuple(shape),
        whole=(*shape[:stacked], *parameter.shape[stacked:]),
        stack=(*begin[:stacked], *shape[:stacked]),
        copy=copy,
    )


class _Cargo(NamedTuple):
    """Parts that go to other ranks, or come from them, in one buffer."""

    ranks: list[list[tuple[int, MatrixPart]]]
    """Numbers of the parameters and parts of them, by rank."""
    sizes: list[int]
    """Elements for each rank."""

    @classmethod
    def of(cls, ranks: list[list[tuple[int, MatrixPart]]]) -> _Cargo:
        """Count the parts of all ranks."""
        return cls(ranks, [sum(part.size for _, part in each) for each in ranks])

    @property
    def parts(self) -> list[tuple[int, MatrixPart]]:
        """Return the parts in the order of the ranks."""
        return [one for each in self.ranks for one in each]

    def views(self, buffer: Tensor) -> Iterator[tuple[int, MatrixPart, Tensor]]:
        """Yield number and part of each parameter with its place in the buffer."""
        parts = self.parts
        places = buffer.split([part.size for _, part in parts])
        for (number, part), place in zip(parts, places, strict=True):
            yield number, part, place.view(part.shape)


class _Round(NamedTuple):
    """What travels at once."""

    owned: list[int]
    """Numbers of the parameters that this rank orthogonalises."""
    sent: _Cargo
    """This rank's parts, to their owners."""
    received: _Cargo
    """The parts of what it owns."""
    returned: _Cargo
    """Parts of the result, to all who wait for them."""
    awaited: _Cargo
    """Its own parts of the results, from their owners."""


class MatrixStacks(Protocol):
    """Room for whole matrices, and what becomes of them."""

    places: list[Tensor]
    """What is to be filled."""

    def empty(self, size: int) -> Tensor:
        """Make a buffer of the type and on the device of the matrices."""

    def orthogonalize(self) -> list[Tensor]:
        """Return the orthogonalised matrices in the order of `places`, which are used up."""


class MatrixExchange:
    """Who owns which of the sharded matrices, and how they travel. All ranks make it together.

    Args:
        parameters: Matrices or stacks of matrices, on one mesh.
        flops: Of the update of one matrix of each parameter.
        shared: Whether copies of a parameter share the work on it, so that just one rank owns it.
        noted: Numbers that its owner tells all ranks beside the update; what has any comes whole.
        most: Elements of the matrices that a rank has whole at once.
    """

    def __init__(
        self,
        parameters: Sequence[DTensor],
        *,
        flops: Sequence[float],
        shared: Sequence[bool],
        noted: Sequence[int],
        most: int,
    ) -> None:
        self.parameters = parameters
        self.group = _group(parameters[0].device_mesh)
        self.ranks = range(dist.get_world_size(self.group))
        self.rank = dist.get_rank(self.group)
        found: list[Any] = [None] * len(self.ranks)
        own = [
            part_of(parameter, together=numbers > 0)
            for parameter, numbers in zip(parameters, noted, strict=True)
        ]
        dist.all_gather_object(found, own, group=self.group)
        self.parts: list[list[MatrixPart]] = found
        """By rank and number of the parameter."""
        self.noted = noted
        self.owners = self._owners(flops, shared)
        self.rounds = self._rounds(flops, most)
        sent = {number for one in self.rounds for number, _ in one.sent.parts}
        self.kept = [number for number in range(len(parameters)) if number not in sent]
        """Of these this rank sends nothing: the owner gets the parts of another copy."""

    def _owners(self, flops: Sequence[float], shared: Sequence[bool]) -> list[list[int | None]]:
        """Return by number and rank who owns the matrices that the rank holds parts of."""
        works: list[Work] = []
        numbers: list[int] = []
        for number, one in enumerate(flops):
            holders: dict[Any, list[int]] = {}
            for rank in self.ranks:
                part = self.parts[rank][number]
                copy = None if shared[number] else part.copy
                holders.setdefault((part.stack, copy), []).append(rank)
            for ranks in holders.values():
                matrices = math.prod(self.parts[ranks[0]][number].whole[:-2])
                if matrices:
                    works.append(Work(one * matrices, ranks))
                    numbers.append(number)
        owners: list[list[int | None]] = [[None] * len(self.ranks) for _ in flops]
        chosen = assign_owners(works, len(self.ranks))
        for number, work, owner in zip(numbers, works, chosen, strict=True):
            for rank in work.candidates:
                owners[number][rank] = owner
        return owners

    def _rounds(self, flops: Sequence[float], most: int) -> list[_Round]:
        """Divide the work so that no rank has too many whole matrices at once."""
        # The costliest come first on all ranks, because a round takes as long as its slowest rank.
        order = sorted(range(len(flops)), key=lambda number: (-flops[number], number))
        queues: list[list[list[int]]] = []
        for rank in self.ranks:
            queue: list[list[int]] = []
            room = 0
            for number in order:
                if self.owners[number][rank] == rank:
                    size = math.prod(self.parts[rank][number].whole)
                    if not queue or size > room:
                        queue.append([])
                        room = most
                    queue[-1].append(number)
                    room -= size
            queues.append(queue)
        rounds = []
        for index in range(max(map(len, queues))):
            owned = [queue[index] if index < len(queue) else [] for queue in queues]

            def returned(owner: int, rank: int, owned: list[list[int]] = owned) -> list[int]:
                return [n for n in owned[owner] if self.owners[n][rank] == owner]

            def sent(rank: int, owner: int) -> list[int]:
                parts, own = self.parts[rank], self.parts[owner]
                return [n for n in returned(owner, rank) if parts[n].copy == own[n].copy]

            me = self.rank

            def cargo(lists: Iterable[tuple[int, list[int]]]) -> _Cargo:
                """Take the parts that a rank holds of the parameters in its list."""
                return _Cargo.of([[(n, self.parts[rank][n]) for n in each] for rank, each in lists])

            rounds.append(
                _Round(
                    owned=owned[me],
                    sent=cargo((me, sent(me, owner)) for owner in self.ranks),
                    received=cargo((rank, sent(rank, me)) for rank in self.ranks),
                    returned=cargo((rank, returned(me, rank)) for rank in self.ranks),
                    awaited=cargo((me, returned(owner, me)) for owner in self.ranks),
                )
            )
        return rounds

    def run(
        self,
        stacks: Callable[[list[tuple[int, ...]]], MatrixStacks],
        *,
        read: Callable[[int], Tensor],
        finish: Callable[[int, Tensor], Tensor],
        write: Callable[[int, Tensor], None],
        note: Callable[[int, Tensor], None],
    ) -> None:
        """Send parts to their owners, orthogonalise there, and return them. All ranks call it.

        Args:
            stacks: Makes room for whole matrices of these shapes; everything travels in its type.
            read: Gives this rank's part of a parameter, by number; called once for each.
            finish: Changes orthogonalised matrices in place; returns what is to be noted, if any.
            write: Takes this rank's part of the result.
            note: Takes what the owner has given to be noted.
        """
        for number in self.kept:
            read(number)
        for one in self.rounds:
            whole = stacks([self.parts[self.rank][number].whole for number in one.owned])
            self._bring(one, whole, read)
            results = dict(zip(one.owned, whole.orthogonalize(), strict=True))
            notes = {number: finish(number, result) for number, result in results.items()}
            self._return(one, whole, results, write)
            if any(self.noted):
                self._tell(one, notes, note)

    def _bring(self, one: _Round, whole: MatrixStacks, read: Callable[[int], Tensor]) -> None:
        """Fill the matrices that this rank owns, and send parts of those of the others."""
        places = dict(zip(one.owned, whole.places, strict=True))
        sent, received = whole.empty(sum(one.sent.sizes)), whole.empty(sum(one.received.sizes))
        for number, _, piece in one.sent.views(sent):
            piece.copy_(read(number))
        self._travel(sent, one.sent, received, one.received)
        for number, part, piece in one.received.views(received):
            part.of(places[number]).copy_(piece)

    def _return(
        self,
        one: _Round,
        whole: MatrixStacks,
        results: dict[int, Tensor],
        write: Callable[[int, Tensor], None],
    ) -> None:
        """Send the parts of what this rank owns, and take those of the others."""
        sent, received = whole.empty(sum(one.returned.sizes)), whole.empty(sum(one.awaited.sizes))
        for number, part, piece in one.returned.views(sent):
            piece.copy_(part.of(results[number]))
        self._travel(sent, one.returned, received, one.awaited)
        for number, _, piece in one.awaited.views(received):
            write(number, piece)

    def _tell(
        self, one: _Round, notes: dict[int, Tensor], note: Callable[[int, Tensor], None]
    ) -> None:
        """Tell the other ranks what the owners note, in fp32."""
        device = self.parameters[0].device
        counts = [
            [sum(self.noted[number] for number, _ in each) for each in cargo.ranks]
            for cargo in (one.returned, one.awaited)
        ]
        sent = torch.cat(
            [torch.empty(0, device=device)]
            + [notes[number].flatten() for number, _ in one.returned.parts if self.noted[number]]
        )
        received = torch.empty(sum(counts[1]), device=device)
        dist.all_to_all_single(received, sent, counts[1], counts[0], group=self.group)
        numbers = [number for number, _ in one.awaited.parts]
        told = received.split([self.noted[number] for number in numbers])
        for number, moment in zip(numbers, told, strict=True):
            if self.noted[number]:
                note(number, moment)

    def _travel(self, given: Tensor, gives: _Cargo, taken: Tensor, takes: _Cargo) -> None:
        dist.all_to_all_single(taken, given, takes.sizes, gives.sizes, group=self.group)


def _group(mesh: DeviceMesh) -> dist.ProcessGroup:
    """Return the process group of all devices of a mesh."""
    if mesh.size() == dist.get_world_size():
        return cast("dist.ProcessGroup", dist.group.WORLD)
    return mesh.get_group() if mesh.ndim == 1 else mesh._flatten().get_group()
