"""Values that belong to a model: trained ones (`Parameter`) and merely saved ones (`Buffer`).

Both are lazy. Constructing ``Linear(9216, 4096)`` allocates nothing, so that a plan for a model of any size
needs no arrays; ``model.init(seed)`` draws the values. A rank that holds a part of a parameter states which
one by ``slices``: the whole is drawn from the seed and the parameter's name, and the part is cut out, so
the numbers do not depend on how the model is split.
"""

import numpy as np

from minidnn.backend import to_device
from minidnn.functional.factors import Factors
from minidnn.nn.init import Initializer, zeros
from minidnn.random import rng
from minidnn.tensor import Tensor

_grad = Tensor.grad  # the slot: `Parameter` puts a property of this name over it


class Variable(Tensor):
    """A lazily allocated tensor: a part of a whole of shape ``full_shape``, which ``init`` draws.

    ``slices`` is the part that is held here, one slice of step 1 per axis; ``data`` is None until `materialise`, which
    ``Module.init`` and ``Module.load_state_dict`` call.
    """

    def __init__(
        self,
        full_shape: tuple[int, ...],
        init: Initializer = zeros,
        slices: tuple[slice, ...] | None = None,
        requires_grad: bool = False,
    ) -> None:
        super().__init__(np.empty(0, np.float32), requires_grad=requires_grad)
        self.data = None
        self.full_shape = tuple(int(n) for n in full_shape)
        self.init = init
        whole = tuple(slice(0, n) for n in self.full_shape)
        if slices is not None and len(slices) != len(whole):
            raise ValueError(f"{len(slices)} slices for a parameter of shape {self.full_shape}")
        self.slices = tuple(
            slice(*s.indices(n)[:2]) for s, n in zip(slices or whole, self.full_shape, strict=True)
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the part held here, known before there are values."""
        return tuple(max(0, s.stop - s.start) for s in self.slices)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.full_shape)

    @property
    def size(self) -> int:
        """Number of elements held here."""
        return int(np.prod(self.shape, dtype=np.int64))

    def part(self, slices: tuple[slice, ...]) -> "Variable":
        """A new variable without values: these slices of the whole."""
        part = type(self)(self.full_shape, self.init, slices)
        part.name, part.requires_grad = self.name, self.requires_grad
        return part

    def materialise(self, seed: int, name: str, dtype=np.float32, xp=np) -> None:
        """Draw the whole from ``rng(seed, name)`` in float64, keep the part held here as ``dtype``."""
        whole = np.asarray(self.init(rng(seed, name), self.full_shape))
        if whole.shape != self.full_shape:
            got = f"the initialiser returned shape {whole.shape}"
            raise ValueError(f"{name}: {got}, expected {self.full_shape}")
        self.set_values(whole, dtype, xp)
        self.name = name

    def set_values(self, whole, dtype, xp=np) -> None:
        """Take new storage with this part of ``whole`` (an array of ``full_shape``, or already the part)."""
        part = whole[self.slices] if whole.shape == self.full_shape else whole
        self.data = xp.array(to_device(part, xp), dtype=dtype, order="C")
        self.grad = None
        self.version += 1

    def __repr__(self) -> str:
        state = "no values yet" if self.data is None else str(self.data.dtype)
        part = "" if self.shape == self.full_shape else f" of {self.full_shape}"
        return f"{type(self).__name__}({self.name or ''} {self.shape}{part}, {state})"


class Parameter(Variable):
    """A value that is trained; ``decay`` says whether weight decay applies to it."""

    factors: (
        Factors | None
    )  # the gradient of a large matrix, as factors whose product nobody has needed so far
    exchange_factors = (
        False  # whether the gradient, however small the matrix, stays factors, for other ranks to have
    )

    def __init__(
        self,
        full_shape: tuple[int, ...],
        init: Initializer = zeros,
        slices: tuple[slice, ...] | None = None,
        decay: bool = True,
    ) -> None:
        super().__init__(full_shape, init, slices, requires_grad=True)
        self.decay = decay

    @property
    def grad(self):
        """The gradient, or None. Where it was left as factors, they are multiplied now."""
        if self.factors is not None:
            self.grad = self.factors.product()
        return _grad.__get__(self)

    @grad.setter
    def grad(self, gradient) -> None:
        self.factors = None
        _grad.__set__(self, gradient)

    def add_factors(self, factors: Factors) -> None:
        """Add a gradient that is left as factors for now; several are joined while that is worth it."""
        joined = None if self.factors is None else self.factors.joined(factors)
        if joined is not None and (self.exchange_factors or joined.worthwhile):
            self.factors = joined
        elif self.grad is not None:
            self.grad += factors.product()
        else:
            self.factors = factors

    def part(self, slices: tuple[slice, ...]) -> "Parameter":
        """As `Variable.part`; the part keeps ``decay``."""
        part = super().part(slices)
        part.decay = self.decay
        return part


class Buffer(Variable):
    """A value that is saved with the model but not trained: the running statistics of batch normalisation."""
