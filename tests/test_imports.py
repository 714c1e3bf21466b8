"""What the modules of the package import of each other, read from their source: nothing goes in a circle."""

import ast
import graphlib
from importlib.util import resolve_name
from pathlib import Path

import minidnn

PACKAGE = Path(minidnn.__file__).parent
AT_RUN_TIME = {
    (
        "minidnn.backend.kernels",
        "minidnn.fast",
    ),  # chosen by name at the first call; built on the plain kernels
}


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree, package, modules):
    """The modules that a file imports anywhere, in functions too and by `import_module`; a name of a package is its
    module if it has one, and of a name that is put together all that fit."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            inside = [f"{source}.{alias.name}" for alias in node.names]
            names = [name if name in modules else source for name in inside]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            name = node.args[0]
            known = name.values[0] if isinstance(name, ast.JoinedStr) else name
            if ast.unparse(known) == "{__name__}":
                continue
            assert isinstance(known, ast.Constant), f"{package}: cannot tell what {ast.unparse(node)} imports"
            start = resolve_name(known.value, package)
            names = [m for m in modules if m == start or known is not name and m.startswith(start)]
        else:
            continue
        yield from (name for name in names if name in modules)


def graph_of(files):
    modules = {module_name(path): path for path in files}
    graph = {}
    for name, path in modules.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        graph[name] = set(imported(ast.parse(path.read_text()), package, modules)) - {name}
    return graph


def test_no_import_goes_in_a_circle():
    graph = graph_of(PACKAGE.rglob("*.py"))
    assert len(graph) > 150 and "minidnn.parallel.events" in graph["minidnn.parallel.planner"]
    for name, later in AT_RUN_TIME:
        graph[name] = {other for other in graph[name] if not other.startswith(later)}
    # a package is not its modules: they are loaded when it is, so only what they themselves ask for counts
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the circle
