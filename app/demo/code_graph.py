"""Python source as a graph: what defines, imports, inherits from and calls what.

Vertices are modules, classes and functions, named as Python names them (``json.decoder``,
``json.decoder.JSONDecoder.decode``). Edges:

========  ==============================  =====================================================
DEFINES   module or class or function ->  what its body defines
IMPORTS   module -> module                ``lazy``: only inside functions
INHERITS  class -> class                  ``position`` among the bases
CALLS     function or module -> callable  ``count``: how often the text does it
========  ==============================  =====================================================

Names are resolved statically, as far as that is certain: through imports (also ``from m import
*``), enclosing functions, ``self``, ``cls`` and ``super()``, base classes and builtins. A name that
a function assigns is left alone. What cannot be resolved is no edge. The same files give the same
graph in the same order.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import gc
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

__all__ = ["CodeEdge", "CodeGraph", "CodeVertex", "read_code_graph", "standard_library"]

Label = Literal["Module", "Class", "Function"]
_FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef

_SKIPPED_FOLDERS: Final = frozenset(
    {
        *("test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo"),
        *("site-packages", "dist-packages", "__pycache__", "ensurepip"),
    }
)
_ALIAS_DEPTH_MAX: Final = 16
"""How many imports a name is followed through; they may form a ring."""
_BASES_MAX: Final = 64
"""How many classes are searched for an inherited method."""


@dataclass(frozen=True, slots=True)
class CodeVertex:
    """A module, class or function. ``name`` is unique among all three."""

    label: Label
    name: str
    properties: dict[str, str | int | bool]


@dataclass(frozen=True, slots=True)
class CodeEdge:
    """An edge between two vertices, by their names. At most one of a label between two."""

    label: str
    source: str
    target: str
    properties: dict[str, str | int | bool]


@dataclass(slots=True)
class CodeGraph:
    """What :func:`read_code_graph` found. ``skipped``: files that are no Python of this version."""

    vertices: list[CodeVertex] = field(default_factory=list)
    edges: list[CodeEdge] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    files: int = 0
    lines: int = 0


def standard_library() -> Path:
    """The folder of the standard library of the running interpreter."""
    return Path(sysconfig.get_paths()["stdlib"])


def read_code_graph(root: Path) -> CodeGraph:
    """The graph of all Python files below ``root``, but for tests and installed packages."""
    graph = CodeGraph()
    modules: dict[str, _Module] = {}
    with _no_collection():
        for path in _source_files(root):
            name = _module_name(path.relative_to(root))
            tree = _parse(path, graph)
            if tree is not None and name not in modules:
                modules[name] = _Module(name, path.name == "__init__.py", tree)
        _Reader(graph, modules).read()
    return graph


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Millions of syntax nodes live until the end: the collector would only walk over them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _source_files(root: Path) -> list[Path]:
    found = (path.relative_to(root) for path in root.rglob("*.py"))
    kept = (path for path in found if _SKIPPED_FOLDERS.isdisjoint(path.parts))
    # Only what can be imported: no folder with a hyphen in its name is a package.
    named = (path for path in kept if all(part.isidentifier() for part in _parts(path)))
    return [root / path for path in sorted(named)]


def _parts(path: Path) -> tuple[str, ...]:
    return path.with_suffix("").parts


def _module_name(path: Path) -> str:
    parts = _parts(path)
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _parse(path: Path, graph: CodeGraph) -> ast.Module | None:
    source = path.read_bytes()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        graph.skipped.append(path)
        return None
    graph.files += 1
    graph.lines += source.count(b"\n")
    return tree


@dataclass(frozen=True, slots=True)
class _Alias:
    """A name bound by an import: a module, or ``attribute`` of one."""

    module: str
    attribute: str | None = None


_Bindings = dict[str, "str | _Alias"]
"""Names of a scope: the vertex that a definition made, or what an import bound."""


class _Module:
    """One source file: its definitions and the names of its top level."""

    def __init__(self, name: str, is_package: bool, tree: ast.Module) -> None:
        self.name = name
        self.is_package = is_package
        self.tree = tree
        self.names: _Bindings = {}
        self.stars: list[str] = []

    def absolute(self, node: ast.ImportFrom) -> str:
        """The module that ``from … import`` names; relative ones are made absolute."""
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        kept = len(parts) - node.level + self.is_package
        package = ".".join(parts[: max(kept, 0)])
        return ".".join(part for part in (package, node.module) if part)


@dataclass(slots=True)
class _Class:
    name: str
    module: _Module | None = None
    expressions: list[ast.expr] = field(default_factory=list)
    """The bases as they are written in ``module``; a builtin class has neither."""
    members: dict[str, str] = field(default_factory=dict)
    bases: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Function:
    """A function, or the statements of a module itself."""

    name: str
    module: _Module
    scopes: tuple[_Bindings, ...]
    """Names of the enclosing functions, innermost first."""
    owner: str | None
    """The class whose method it is."""
    first_parameter: str | None = None
    calls: list[ast.Call] = field(default_factory=list)
    local: frozenset[str] = frozenset()
    """Names that it assigns: what they hold is not known."""


class _Reader:
    """Turns modules into a graph: first all definitions, then the names between them."""

    def __init__(self, graph: CodeGraph, modules: dict[str, _Module]) -> None:
        self.graph = graph
        self.modules = modules
        self.labels: dict[str, Label] = {}
        self.classes: dict[str, _Class] = {}
        self.functions: list[_Function] = []
        self.edges: dict[tuple[str, str, str], CodeEdge] = {}

    def read(self) -> None:
        for module in self.modules.values():
            self._define(
                "Module", module.name, {"kind": "package" if module.is_package else "source"}
            )
        for module in self.modules.values():
            self._enter(module)
        for module in self.modules.values():
            self._imports(module)
        for found in list(self.classes.values()):
            self._inherits(found)
        for function in self.functions:
            self._calls(function)
        self.graph.edges = list(self.edges.values())

    # Definitions

    def _define(self, label: Label, name: str, properties: dict[str, str | int | bool]) -> bool:
        if name in self.labels:
            return False
        self.labels[name] = label
        short = name if label == "Module" else name.rpartition(".")[2]
        self.graph.vertices.append(
            CodeVertex(label, name, {"name": name, "short": short, **properties})
        )
        return True

    def _edge(
        self, label: str, source: str, target: str, properties: dict[str, str | int | bool]
    ) -> bool:
        key = (label, source, target)
        if source == target or key in self.edges:
            return False
        self.edges[key] = CodeEdge(label, source, target, properties)
        return True

    def _enter(self, module: _Module) -> None:
        calls, _ = _own_calls_and_names(module.tree)
        self.functions.append(_Function(module.name, module, (), None, calls=calls))
        self._enter_body(module, module.tree, module.name, module.names, (), None)

    def _enter_body(
        self,
        module: _Module,
        parent: ast.AST,
        prefix: str,
        names: _Bindings,
        scopes: tuple[_Bindings, ...],
        owner: _Class | None,
    ) -> None:
        for node in _own_nodes(parent):
            if isinstance(node, _DEFINITIONS):
                self._enter_definition(module, node, prefix, names, scopes, owner)
            elif isinstance(node, _IMPORTS):
                self._bind_import(module, node, names, is_top=names is module.names)

    def _enter_definition(
        self,
        module: _Module,
        node: ast.ClassDef | _FunctionNode,
        prefix: str,
        names: _Bindings,
        scopes: tuple[_Bindings, ...],
        owner: _Class | None,
    ) -> None:
        name = f"{prefix}.{node.name}"
        is_class = isinstance(node, ast.ClassDef)
        properties: dict[str, str | int | bool] = {
            "module": module.name,
            "line": node.lineno,
            "lines": (node.end_lineno or node.lineno) - node.lineno + 1,
        }
        if isinstance(node, ast.AsyncFunctionDef):
            properties["is_async"] = True
        if not self._define("Class" if is_class else "Function", name, properties):
            return  # a second definition of the name, as in the branches of an if
        self._edge("DEFINES", prefix, name, {"line": node.lineno})
        names.setdefault(node.name, name)
        if owner is not None:
            owner.members[node.name] = name
        if isinstance(node, ast.ClassDef):
            self._enter_class(module, node, name, scopes)
        else:
            self._enter_function(module, node, name, scopes, owner)

    def _enter_class(
        self, module: _Module, node: ast.ClassDef, name: str, scopes: tuple[_Bindings, ...]
    ) -> None:
        found = _Class(name, module, node.bases)
        self.classes[name] = found
        # The names of a class body are not seen from its methods.
        self._enter_body(module, node, name, {}, scopes, found)

    def _enter_function(
        self,
        module: _Module,
        node: _FunctionNode,
        name: str,
        scopes: tuple[_Bindings, ...],
        owner: _Class | None,
    ) -> None:
        inner: _Bindings = {}
        static = any(
            isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list
        )
        arguments = [*node.args.posonlyargs, *node.args.args]
        calls, local = _own_calls_and_names(node)
        self.functions.append(
            _Function(
                name,
                module,
                (inner, *scopes),
                owner.name if owner else None,
                first_parameter=arguments[0].arg if owner and arguments and not static else None,
                calls=calls,
                local=local,
            )
        )
        self._enter_body(module, node, name, inner, (inner, *scopes), None)

    def _bind_import(
        self,
        module: _Module,
        node: ast.Import | ast.ImportFrom,
        names: _Bindings,
        *,
        is_top: bool,
    ) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound = alias.name if alias.asname else alias.name.partition(".")[0]
                names.setdefault(alias.asname or bound, _Alias(bound))
            return
        source = module.absolute(node)
        for alias in node.names:
            if alias.name != "*":
                names.setdefault(alias.asname or alias.name, self._alias(source, alias.name))
            elif is_top:
                module.stars.append(source)

    def _alias(self, source: str, name: str) -> _Alias:
        whole = f"{source}.{name}"
        return _Alias(whole) if whole in self.modules else _Alias(source, name)

    # Imports

    def _imports(self, module: _Module) -> None:
        for node, lazy in _import_statements(module.tree):
            for name in self._imported(module, node):
                target = self._module_vertex(name)
                if target is not None:
                    self._edge(
                        "IMPORTS",
                        module.name,
                        target,
                        {"name": target, "line": node.lineno, "lazy": lazy},
                    )

    def _imported(self, module: _Module, node: ast.Import | ast.ImportFrom) -> list[str]:
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        source = module.absolute(node)
        submodules = [
            name
            for alias in node.names
            if (name := f"{source}.{alias.name}") in self.modules and alias.name != "*"
        ]
        return submodules if len(submodules) == len(node.names) else [source, *submodules]

    def _module_vertex(self, name: str) -> str | None:
        """The vertex of a module; one without source gets its vertex here."""
        if name in self.modules:
            return name
        if name.partition(".")[0] not in sys.stdlib_module_names or name in self.labels:
            return name if self.labels.get(name) == "Module" else None
        kind = "builtin" if name in sys.builtin_module_names else "extension"
        self._define("Module", name, {"kind": kind})
        return name

    # Inheritance

    def _inherits(self, found: _Class) -> None:
        if found.module is None:
            return
        for position, base in enumerate(found.expressions):
            target = self._resolve_expression(base, found.module, (), frozenset())
            if target is not None and self.labels.get(target) == "Class":
                found.bases.append(target)
                self._edge("INHERITS", found.name, target, {"position": position})

    # Calls

    def _calls(self, function: _Function) -> None:
        counts: dict[str, tuple[int, int]] = {}
        for call in function.calls:
            target = self._called(call.func, function)
            if target is not None and self.labels[target] != "Module":
                count, line = counts.get(target, (0, call.lineno))
                counts[target] = (count + 1, line)
        for target, (count, line) in counts.items():
            self._edge(
                "CALLS", function.name, target, {"name": target, "count": count, "line": line}
            )

    def _called(self, expression: ast.expr, function: _Function) -> str | None:
        if isinstance(expression, ast.Attribute) and function.owner is not None:
            base = expression.value
            if isinstance(base, ast.Name) and base.id == function.first_parameter:
                return self._method(function.owner, expression.attr)
            if _is_super(base):
                return self._method(function.owner, expression.attr, skip_own=True)
        return self._resolve_expression(
            expression, function.module, function.scopes, function.local
        )

    def _method(self, owner: str, name: str, *, skip_own: bool = False) -> str | None:
        """The method of a class or, breadth first, of its bases."""
        queue = [owner]
        for position in range(_BASES_MAX):
            if position >= len(queue):
                return None
            found = self.classes.get(queue[position])
            if found is None:
                continue
            if name in found.members and not (skip_own and position == 0):
                return found.members[name]
            queue += [base for base in found.bases if base not in queue]
        return None

    # Names

    def _resolve_expression(
        self,
        expression: ast.expr,
        module: _Module,
        scopes: tuple[_Bindings, ...],
        local: frozenset[str],
    ) -> str | None:
        """The vertex that a name or a dotted name stands for."""
        if isinstance(expression, ast.Name):
            return self._resolve_name(expression.id, module, scopes, local)
        if isinstance(expression, ast.Attribute):
            base = self._resolve_expression(expression.value, module, scopes, local)
            return None if base is None else self._attribute(base, expression.attr)
        if isinstance(expression, ast.Subscript):  # Generic[T]
            return self._resolve_expression(expression.value, module, scopes, local)
        return None

    def _resolve_name(
        self, name: str, module: _Module, scopes: tuple[_Bindings, ...], local: frozenset[str]
    ) -> str | None:
        for names in scopes:
            if name in names:
                return self._follow(names[name], 0)
        if name in local:
            return None
        found = self._module_attribute(module, name, 0)
        return self._builtin(name) if found is None else found

    def _attribute(self, base: str, name: str) -> str | None:
        label = self.labels.get(base)
        if label == "Class":
            return self._method(base, name)
        if base in self.modules:
            return self._module_attribute(self.modules[base], name, 0)
        return None

    def _module_attribute(self, module: _Module, name: str, depth: int) -> str | None:
        if name in module.names:
            return self._follow(module.names[name], depth)
        if depth < _ALIAS_DEPTH_MAX:
            for star in module.stars:
                if star in self.modules and not name.startswith("_"):
                    found = self._module_attribute(self.modules[star], name, depth + 1)
                    if found is not None:
                        return found
        submodule = f"{module.name}.{name}"
        return submodule if submodule in self.modules else None

    def _follow(self, binding: str | _Alias, depth: int) -> str | None:
        if isinstance(binding, str):
            return binding
        if binding.attribute is None:
            return binding.module if binding.module in self.labels else None
        module = self.modules.get(binding.module)
        if module is None or depth >= _ALIAS_DEPTH_MAX:
            return None
        return self._module_attribute(module, binding.attribute, depth + 1)

    def _builtin(self, name: str) -> str | None:
        """A builtin class or function; its vertex is made when it is first met."""
        value = getattr(builtins, name, None)
        if not callable(value) or name.startswith("_"):
            return None
        full = f"builtins.{name}"
        if full not in self.labels:
            self._module_vertex("builtins")
            label: Label = "Class" if isinstance(value, type) else "Function"
            self._define(label, full, {"module": "builtins"})
            self._edge("DEFINES", "builtins", full, {"line": 0})
            if isinstance(value, type):
                self._builtin_bases(full, value)
        return full

    def _builtin_bases(self, full: str, value: type) -> None:
        found = _Class(full)
        self.classes[full] = found
        for position, base in enumerate(value.__bases__):
            target = self._builtin(base.__name__)
            if target is not None and target != full:
                found.bases.append(target)
                self._edge("INHERITS", full, target, {"position": position})


_STATEMENTS: Final = (ast.stmt, ast.excepthandler, ast.match_case)
_IMPORTS: Final = (ast.Import, ast.ImportFrom)
_DEFINITIONS: Final = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _own_nodes(parent: ast.AST) -> Iterator[ast.AST]:
    """The statements of a body, also nested ones, in order, but not those of definitions in it."""
    for child in _children(parent):
        if isinstance(child, _STATEMENTS):
            yield child
            if not isinstance(child, _DEFINITIONS) and not _is_main_block(child):
                yield from _own_nodes(child)


def _import_statements(tree: ast.Module) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """All imports with whether they run only when a function is called; eager ones first."""
    lazy: list[ast.Import | ast.ImportFrom] = []
    pending: list[tuple[ast.AST, bool]] = [(tree, False)]
    while pending:
        parent, is_lazy = pending.pop(0)
        for node in _own_nodes(parent):
            if isinstance(node, _IMPORTS):
                if is_lazy:
                    lazy.append(node)
                else:
                    yield node, False
            elif isinstance(node, _DEFINITIONS):
                pending.append((node, is_lazy or not isinstance(node, ast.ClassDef)))
    for node in lazy:
        yield node, True


def _is_main_block(node: ast.AST) -> bool:
    """``if __name__ == "__main__":`` runs for a script, never for who imports the module."""
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Compare)
        and isinstance(node.test.left, ast.Name)
        and node.test.left.id == "__name__"
    )


def _is_super(expression: ast.expr) -> bool:
    return (
        isinstance(expression, ast.Call)
        and isinstance(expression.func, ast.Name)
        and expression.func.id == "super"
        and not expression.args
    )


def _own_calls_and_names(node: ast.AST) -> tuple[list[ast.Call], frozenset[str]]:
    """What a function itself calls, and the names that it assigns; nested definitions excluded.

    One walk with a list, for it meets every node of every file: half the time of generators.
    """
    calls: list[ast.Call] = []
    names: set[str] = set()
    pending = _children(node)
    while pending:
        child = pending.pop()
        if isinstance(child, _DEFINITIONS):
            continue
        if isinstance(child, ast.Name):
            if isinstance(child.ctx, ast.Store):
                names.add(child.id)
            continue
        if isinstance(child, ast.Call):
            calls.append(child)
        elif isinstance(child, ast.arg):
            names.add(child.arg)
        elif isinstance(child, ast.ExceptHandler) and child.name:
            names.add(child.name)
        pending += _children(child)
    calls.sort(key=lambda call: (call.lineno, call.col_offset))
    return calls, frozenset(names)


def _children(node: ast.AST) -> list[ast.AST]:
    found: list[ast.AST] = []
    for name in node._fields:
        value = getattr(node, name, None)
        if isinstance(value, ast.AST):
            found.append(value)
        elif isinstance(value, list):
            found += [item for item in value if isinstance(item, ast.AST)]
    return found
