"""A linear map of tensors, recorded once as a list of tensor operations and then replayed.

Evaluating ``x -> J x`` through autograd repeats, at every product, work that does not depend on x:
the primal values, the dispatch through transforms, results that nobody reads (the double backward
of a convolution also computes a weight gradient). A `Tape` holds the operations that lie on a path
from x to the result and nothing else; whatever did not depend on x is kept as a constant.

The record is sound by construction. An operation that could not be repeated (a number read out of a
tensor that depends on x, a write into a constant, an operand that shares memory with x without
being derived from it) raises `NotRecordableError`, and a constant that is written to after the
recording is noticed at the next replay.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

# They return their operand when its shape and strides stay as they are: not worth a step.
VIEWS = frozenset(
    {
        aten.alias.default,
        aten.detach.default,
        aten.expand.default,
        aten.permute.default,
        aten.view.default,
        aten._unsafe_view.default,
    }
)
# Their result depends on shapes only: it is the same at every replay.
SHAPE_QUERIES = frozenset({aten.is_same_size.default})
# The same operations by entry points that cost half as much to call.
FAST_CALLS: dict[Any, Callable[..., Tensor]] = {
    aten._unsafe_view.default: Tensor.view,
    aten.add.Tensor: torch.add,
    aten.add_.Tensor: Tensor.add_,
    aten.bmm.default: torch.bmm,
    aten.div.Scalar: torch.div,
    aten.div.Tensor: torch.div,
    aten.div_.Scalar: Tensor.div_,
    aten.mm.default: torch.mm,
    aten.mul.Scalar: torch.mul,
    aten.mul.Tensor: torch.mul,
    aten.mul_.Scalar: Tensor.mul_,
    aten.sub.Tensor: torch.sub,
    aten.sub_.Tensor: Tensor.sub_,
    aten.sum.dim_IntList: torch.sum,
    aten.transpose.int: torch.transpose,
    aten.view.default: Tensor.view,
}


class NotRecordableError(RuntimeError):
    """The function did something with its argument that a tape could not repeat."""

    @classmethod
    def of(cls, func: Any) -> NotRecordableError:
        """The error for one operation."""
        return cls(f"{func} cannot be recorded on a tape")


class StaleError(RuntimeError):
    """A constant of the tape was written to after the recording."""


@dataclass(slots=True)
class Step:
    """One operation: ``args`` holds its constants, other operands come from numbered registers."""

    op: Callable[..., Any]
    args: list[Any]
    kwargs: dict[str, Any]
    operands: list[tuple[int, int]]  # (position in args, register)
    list_operands: list[tuple[int, int, int]]  # (position in args, place in that list, register)
    constants: list[Tensor]
    results: list[int | None] = field(default_factory=list)
    single: bool = True  # one tensor is returned, not a tuple
    writes: bool = False  # in place
    last_uses: list[int] = field(default_factory=list)

    def reads(self) -> list[int]:
        """Registers this step reads."""
        return [r for _, r in self.operands] + [r for _, _, r in self.list_operands]

    def touches(self) -> list[int]:
        """Registers this step reads or sets."""
        return self.reads() + [r for r in self.results if r is not None]

    def run(self, registers: list[Any]) -> None:
        """Set the results from the operands, and drop what is not needed any more."""
        args = self.args.copy()
        for position, register in self.operands:
            args[position] = registers[register]
        for position, place, register in self.list_operands:
            args[position] = _replaced(args[position], place, registers[register])
        out = self.op(*args, **self.kwargs)
        for result, value in zip(self.results, (out,) if self.single else out, strict=True):
            if result is not None:
                registers[result] = value
        for register in self.last_uses:
            registers[register] = None


class Tape:
    """A recorded linear map: ``tape(x)`` repeats on x what was done to the recorded argument.

    Memory: the constants (for a Jacobian the activations and weights its derivatives need) stay
    alive with the tape; a replay frees each intermediate result after its last use.
    """

    def __init__(self, recorder: Recorder, y: Tensor):
        self._registers = recorder.dependents.count
        register = recorder.dependents.register(y)
        self._fixed = y if register is None else None  # x has no part in the result
        self._result = register or 0
        self.steps = [] if register is None else _needed(recorder.steps, register)
        _mark_last_uses(self.steps, self._result)
        for step in self.steps:
            step.op = FAST_CALLS.get(step.op, step.op)
        used = {id(t) for step in self.steps for t in step.constants}
        self.constants = [c for key, c in recorder.constants.items() if key in used]

    @classmethod
    def record(cls, apply: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tape, Tensor]:
        """Evaluate ``apply(x)``, linear in x, and record it.

        Returns:
            The tape and the result.

        Raises:
            NotRecordableError: If an operation cannot be repeated.
        """
        x = x.clone(memory_format=torch.contiguous_format)
        recorder = Recorder(x)
        with recorder:
            y = apply(x)
        tape = cls(recorder, y)
        if tape.is_stale():
            msg = "a tensor that the derivative needs was overwritten during its evaluation"
            raise NotRecordableError(msg)
        return tape, y

    def is_stale(self) -> bool:
        """Whether a constant has been written to since it was recorded."""
        return any(tensor._version != version for tensor, version in self.constants)

    def __call__(self, x: Tensor) -> Tensor:
        """Replay on x, of the recorded shape.

        Raises:
            StaleError: If a constant was modified in place since the recording.
        """
        if self.is_stale():
            msg = (
                "A tensor that f uses was modified in place after the Jacobian was built (by an "
                "optimizer step?): build a new Jacobian."
            )
            raise StaleError(msg)
        if self._fixed is not None:
            return self._fixed.clone()
        registers: list[Any] = [None] * self._registers
        registers[0] = x.contiguous()  # the recorded views assume it
        for step in self.steps:
            step.run(registers)
        return registers[self._result]


class Recorder(TorchDispatchMode):
    """Sees every operation below autograd and keeps those with an operand that depends on x."""

    def __init__(self, x: Tensor):
        super().__init__()
        self.dependents = _Dependents()
        self.dependents.add(x)
        self.steps: list[Step] = []
        self.constants: dict[int, tuple[Tensor, int]] = {}
        self._protected_memory = {_memory(x)}  # constants and x itself: must not be written to

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the default wraps the method below in a slow call, and imports the compiler

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,  # noqa: ARG002
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        step = self._step(func, args, kwargs)
        if step is None:
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        if isinstance(out, Tensor):
            if func in VIEWS and out.shape == args[0].shape and out.stride() == args[0].stride():
                self.dependents.add(out, step.operands[0][1])
                return out
            step.results = [self._result(func, out)]
        elif isinstance(out, (tuple, list)):
            step.single = False
            step.results = [self._result(func, o) for o in out]
        elif func in SHAPE_QUERIES:
            return out
        else:
            raise NotRecordableError.of(func)
        self.steps.append(step)
        return out

    def _step(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step | None:
        """The operation, if one of its operands depends on x."""
        register_of = self.dependents.register
        operands, list_operands, constants = [], [], []
        for position, value in enumerate(args):
            if isinstance(value, Tensor):
                register = register_of(value)
                if register is None:
                    constants.append(value)
                else:
                    operands.append((position, register))
            elif isinstance(value, (list, tuple)):
                for place, item in enumerate(value):
                    if isinstance(item, Tensor):
                        register = register_of(item)
                        if register is None:
                            constants.append(item)
                        else:
                            list_operands.append((position, place, register))
        for value in kwargs.values():
            if isinstance(value, Tensor):
                if register_of(value) is not None:
                    raise NotRecordableError.of(func)
                constants.append(value)
        if not operands and not list_operands:
            return None
        for tensor in constants:
            self._note_constant(func, tensor)
        step = Step(func, list(args), kwargs, operands, list_operands, constants)
        step.writes = func._schema.is_mutable
        if step.writes:
            self._check_writes(func, args)
        for position, _ in operands:
            step.args[position] = None
        for position, place, _ in list_operands:
            step.args[position] = _replaced(step.args[position], place, None)
        return step

    def _result(self, func: Any, out: Any) -> int | None:
        if out is None:
            return None
        if not isinstance(out, Tensor):
            raise NotRecordableError.of(func)
        register = self.dependents.register(out)  # an in-place operation returns its operand
        return self.dependents.add(out) if register is None else register

    def _note_constant(self, func: Any, tensor: Tensor) -> None:
        if id(tensor) in self.constants:
            return
        memory = _memory(tensor)
        if self.dependents.in_memory[memory]:
            raise NotRecordableError.of(func)
        self.constants[id(tensor)] = tensor, tensor._version
        self._protected_memory.add(memory)

    def _check_writes(self, func: Any, args: tuple[Any, ...]) -> None:
        """Writes may go to memory that the recorded operations made, and nowhere else."""
        declared = zip(args, func._schema.arguments, strict=False)
        written = [a for a, s in declared if s.alias_info is not None and s.alias_info.is_write]
        if not written or any(_memory(a) in self._protected_memory for a in written):
            raise NotRecordableError.of(func)


class _Dependents:
    """The live tensors that depend on x: their registers, and how many share an address."""

    def __init__(self) -> None:
        self.count = 0
        self.in_memory: Counter[int] = Counter()
        self._registers: dict[int, int] = {}  # by identity, as long as the tensor lives
        self._watches: dict[int, weakref.ref[Tensor]] = {}

    def add(self, tensor: Tensor, register: int | None = None) -> int:
        """Give the tensor a register: a new one unless it is another view of an old one."""
        if register is None:
            register = self.count
            self.count += 1
        key, memory = id(tensor), _memory(tensor)
        self.in_memory[memory] += 1
        self._registers[key] = register
        self._watches[key] = weakref.ref(tensor, lambda _: self._forget(key, memory))
        return register

    def register(self, tensor: Tensor) -> int | None:
        """The tensor's register, if it has one."""
        return self._registers.get(id(tensor))

    def _forget(self, key: int, memory: int) -> None:
        del self._registers[key], self._watches[key]
        self.in_memory[memory] -= 1


def _memory(tensor: Tensor) -> int:
    """Address of the storage; for an empty one a number that no other tensor has."""
    return tensor.untyped_storage().data_ptr() or -id(tensor)


def _needed(steps: list[Step], result: int) -> list[Step]:
    """The steps on which the result depends; all writes stay, since views may share their memory.

    A write is kept with everything it reads, whether or not the result is among its views.
    """
    needed = {result}
    kept = []
    for step in reversed(steps):
        if step.writes or not needed.isdisjoint(r for r in step.results if r is not None):
            needed.update(step.reads())
            kept.append(step)
    return kept[::-1]


def _mark_last_uses(steps: list[Step], result: int) -> None:
    """Note where each register is used last."""
    seen = {result}
    for step in reversed(steps):
        step.last_uses = [r for r in dict.fromkeys(step.touches()) if r not in seen]
        seen.update(step.last_uses)


def _replaced(values: Iterable[Any], place: int, value: Any) -> list[Any]:
    values = list(values)
    values[place] = value
    return values
