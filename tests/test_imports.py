"""What the modules of the engine import of each other, read from their source: nothing goes in a circle."""

import ast
import graphlib
from pathlib import Path

import minidnn

PACKAGE = Path(minidnn.__file__).parent
ENGINE = (
    "backend",
    "fast",
    "functional",
    "graph",
    "gradcases",
    "gradcheck",
    "nn",
    "optim",
    "tape",
    "tensor",
    "values",
)


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path, modules):
    """The modules that a file imports anywhere, in functions too; a name of a package is its module if it has one."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules else node.module for name in inside]
        else:
            continue
        yield from (name for name in names if name in modules)


def test_no_import_of_the_engine_goes_in_a_circle():
    files = [PACKAGE / f"{name}.py" for name in ENGINE if (PACKAGE / f"{name}.py").exists()]
    files += [path for name in ENGINE for path in (PACKAGE / name).rglob("*.py")]
    modules = {module_name(path): path for path in files}
    assert len(modules) > 40
    graph = {name: set(imported(path, modules)) for name, path in modules.items()}
    # a package is not its modules: they are loaded when it is, so only what they themselves ask for counts
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the circle
