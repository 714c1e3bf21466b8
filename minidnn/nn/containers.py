"""Modules in a list or a dictionary, for a module whose `forward` says how they are called."""

from collections.abc import Iterable, Iterator, Mapping

from minidnn.nn.module import Module, join


class ModuleDict(Module):
    """Modules by name: ``blocks["first"](x)``. Their parameters are found, in the order of insertion."""

    def __init__(self, modules: Mapping[str, Module] | None = None) -> None:
        self.inside: dict[str, Module] = {}
        for key, module in (modules or {}).items():
            self[key] = module

    def __setitem__(self, key: str, module: Module) -> None:
        if not isinstance(module, Module):
            raise TypeError(f"{self.label}[{key!r}]: expected a Module, got {type(module).__name__}")
        module.set_name(join(self.name, key))
        self.inside[key] = module

    def __getitem__(self, key: str) -> Module:
        return self.inside[key]

    def __len__(self) -> int:
        return len(self.inside)

    def __iter__(self) -> Iterator:
        return iter(self.inside)

    def children(self) -> Iterator[tuple[str, Module]]:
        """(key, module)."""
        return iter(self.inside.items())

    items = children


class ModuleList(ModuleDict):
    """Modules in order, named "0", "1", ...: ``for block in self.blocks: x = block(x)``."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__({str(i): module for i, module in enumerate(modules)})

    def append(self, module: Module) -> None:
        """Add a module at the end."""
        self[str(len(self))] = module

    def __getitem__(self, i: int | slice) -> Module | list[Module]:
        return list(self.inside.values())[i]

    def __iter__(self) -> Iterator[Module]:
        return iter(self.inside.values())
