"""Write the definitions of a set of Python modules in a normal form that source_digest.py hashes.

A definition is a function, a class or a constant at the top of a module. Its normal form is a list of texts
and of references to other definitions of the same modules. It has no comments, docstrings, annotations
(except Triton's constexpr) or error messages; local names are numbers, in the order of their appearance;
names of other packages are full dotted paths. A class is its members, inherited ones included, without those
that compute nothing: IGNORED_MEMBERS, and hooks that are empty or only return None or an argument.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

# Members that name, describe, refuse or check a method; they do not change what it computes.
IGNORED_MEMBERS = ("refuses", "implementation", "exact", "__repr__")
# Old -> new names of members, attributes and keywords that were renamed without any other change.
# Both are written as the new one, so timings of commits before the renaming stay up to date.
RENAMED = {"settled": "with_threshold_for", "source": "configuration", "whole": "upper_triangle"}
ABSTRACT_BASES = ("abc.ABC", "typing.Protocol", "typing.Generic")
# Fields of syntax nodes that do not change what is computed.
IGNORED_FIELDS = ("ctx", "kind", "type_comment", "type_params", "returns", "annotation", "msg")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
IMPORTS = (ast.Import, ast.ImportFrom)


class Key(NamedTuple):
    """A definition's place: dotted module and name. The name "*" stands for all public names of the module."""

    module: str
    name: str


Parts = list[str | Key]  # a definition's normal form: text, and references to other definitions


@dataclass
class Scope:
    """Names that one function, comprehension or class body binds."""

    names: set[str] = field(default_factory=set)
    imports: dict[str, list[str]] = field(default_factory=dict)
    is_class: bool = False
    numbers: dict[str, int] = field(default_factory=dict)  # name -> its number, in the order of appearance


class Project:
    """The project's modules, parsed when a name in them is first asked for."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        self.sources = sources
        self._bindings: dict[str, dict[str, list[ast.stmt]]] = {}
        self._imports: dict[str, dict[str, list[str]]] = {}
        self._parts: dict[Key, Parts] = {}

    def bindings(self, module: str) -> dict[str, list[ast.stmt]]:
        """Return name -> the top-level statements of a module that bind it."""
        if module not in self._bindings:
            body = ast.parse(self.sources[module]).body
            bound: dict[str, list[ast.stmt]] = {}
            for statement in body:
                for name in sorted(self.scope([statement], module).names):
                    bound.setdefault(name, []).append(statement)
            self._bindings[module], self._imports[module] = bound, self.scope(body, module).imports
        return self._bindings[module]

    def imports(self, module: str) -> dict[str, list[str]]:
        """Return name -> the dotted paths that the top level of a module imports under it."""
        self.bindings(module)
        return self._imports[module]

    def scope(self, body: Iterable[ast.AST], module: str) -> Scope:
        """Return the names that statements of a module bind in their own scope."""
        is_package = any(name.startswith(f"{module}.") for name in self.sources)
        return _scope(body, f"{module}.__init__" if is_package else module)

    def lookup(self, module: str, name: str) -> list[Key | str] | None:
        """Return the definitions and dotted paths that a global name of a module refers to; None for a builtin."""
        if name in self.bindings(module):
            return [Key(module, name)]
        paths = self.imports(module).get(name)
        return None if paths is None else [self.resolve(path) for path in paths]

    def resolve(self, path: str, seen: tuple[str, ...] = ()) -> Key | str:
        """Return the definition that a dotted path names, through re-exports; else the path."""
        parts = path.split(".")
        for count in range(len(parts), 0, -1):
            module, rest = ".".join(parts[:count]), parts[count:]
            if module not in self.sources or path in seen:
                continue
            if rest and rest[0] in self.bindings(module):
                return Key(module, rest[0]) if len(rest) == 1 else path
            if rest and rest[0] in self.imports(module):
                target = ".".join([self.imports(module)[rest[0]][0], *rest[1:]])
                return self.resolve(target, (*seen, path))
        return path

    def parts(self, key: Key) -> Parts:
        """Return a definition's normal form."""
        if key not in self._parts:
            if key.name == "*":
                public = [name for name in self.bindings(key.module) if not name.startswith("_")]
                self._parts[key] = [Key(key.module, name) for name in public]
            else:
                parts = []
                for statement in self.bindings(key.module)[key.name]:
                    parts += self._statement(key, statement)
                self._parts[key] = parts
        return self._parts[key]

    def _statement(self, key: Key, node: ast.stmt) -> Parts:
        """Return the normal form of one statement that binds a definition's name."""
        writer = _Writer(self, key.module)
        if isinstance(node, ast.ClassDef):
            fields, functions, rest = self.members(key.module, node)
            parts = ["class", *rest]
            for members in (fields, dict(sorted(functions.items()))):  # the order of fields counts
                for name, member in members.items():
                    parts += [f" {_renamed(name)}=", *member] if member else []
            if '"super"' in parts:
                bases = [self.base(key.module, base) for base in node.bases]
                parts += [base for base in bases if isinstance(base, Key)]
            return parts
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            places = "".join("*" if name == key.name else "." for name in _stored(node))
            writer.text(f"constant {places} ")
            writer.write(node.value)
        elif isinstance(node, FUNCTIONS):
            writer.function(node)
        else:  # a name bound under if, try or with is the whole statement
            writer.write(node)
        return writer.parts

    def members(self, module: str, node: ast.ClassDef) -> tuple[dict[str, Parts], dict[str, Parts], Parts]:
        """Return a class's fields, its functions and the rest: decorators, foreign bases, other statements.

        Inherited members are included. A member that computes nothing is empty, so that it still overrides.
        """
        fields: dict[str, Parts] = {}
        functions: dict[str, Parts] = {}
        rest: Parts = []

        def written(value: Any) -> Parts:
            writer = _Writer(self, module, [Scope(self.scope(node.body, module).names, is_class=True)])
            writer.write(value)
            return writer.parts

        external = 0
        for base in reversed(node.bases):
            meaning = self.base(module, base)
            if isinstance(meaning, Key):
                inherited = self.members(meaning.module, self._class(meaning))
                fields, functions, rest = fields | inherited[0], functions | inherited[1], rest + inherited[2]
            elif not (isinstance(meaning, str) and meaning.startswith(ABSTRACT_BASES)):
                external += 1
                rest += written(base)
        marks = [mark for mark in node.decorator_list if not is_register(mark)]
        rest += written(marks) if marks else []
        rest += written(node.keywords) if node.keywords else []
        own: dict[str, Parts] = {}
        for statement in node.body:
            if isinstance(statement, FUNCTIONS):
                if statement.name not in IGNORED_MEMBERS:
                    nothing = _computes_nothing(statement)
                    own[statement.name] = own.get(statement.name, []) + ([] if nothing else written(statement))
            elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
                value = statement.value
                # A field without a value counts only in dataclasses, tuples and other foreign kinds of class.
                kept = isinstance(statement, ast.AnnAssign) and (marks or external)
                for name in _stored(statement):
                    member = ["field ", *(written(value) if value else [])]
                    fields[name] = member if kept or (value and not _is_empty(value)) else []
            elif not _says_nothing(statement):
                rest += written(statement)
        return fields, functions | own, rest

    def base(self, module: str, node: ast.expr) -> Key | str | None:
        """Return what a base-class expression names: a class of the project, or a path; None for anything else."""
        writer = _Writer(self, module)
        writer.write(node.value if isinstance(node, ast.Subscript) else node)
        part = writer.parts[0] if len(writer.parts) == 1 else None
        if isinstance(part, Key) and not isinstance(self.bindings(part.module)[part.name][-1], ast.ClassDef):
            return None
        return part

    def _class(self, key: Key) -> ast.ClassDef:
        """Return the syntax node of a class that `base` has named."""
        node = self.bindings(key.module)[key.name][-1]
        if not isinstance(node, ast.ClassDef):
            raise TypeError(f"{'.'.join(key)} is not a class")
        return node


class _Writer:
    """Writes one definition in normal form into `parts`."""

    def __init__(self, project: Project, module: str, scopes: Iterable[Scope] = ()) -> None:
        self.project, self.module, self.scopes = project, module, list(scopes)
        self.parts: Parts = []
        self.count = 0  # number of local names so far

    def text(self, *parts: str | Key) -> None:
        """Append texts and references as they are."""
        self.parts += parts

    def write(self, value: Any) -> None:
        """Write a syntax node, a list of them, or a plain value."""
        if isinstance(value, list):
            self.text("[")
            for item in value:
                if not _says_nothing(item):
                    self.write(item)
            self.text("]")
        elif isinstance(value, FUNCTIONS):
            self.function(value)
        elif isinstance(value, COMPREHENSIONS):
            targets = {name for generator in value.generators for name in _stored(generator.target)}
            self.inside(Scope(targets), value)
        elif isinstance(value, ast.AST):
            getattr(self, f"write_{type(value).__name__}", self.fields)(value)
        else:
            self.text(repr(value))

    def fields(self, node: ast.AST) -> None:
        """Write a syntax node's type and those of its fields that count."""
        self.text(f"{type(node).__name__}(")
        for name, value in ast.iter_fields(node):
            if name not in IGNORED_FIELDS and value is not None and value != []:
                self.text(f" {name}=")
                if name == "name" and isinstance(value, str):
                    self.name(value)
                else:
                    self.write(_renamed(value) if name in ("attr", "arg") else value)
        self.text(")")

    def inside(self, scope: Scope, node: ast.AST) -> None:
        """Write a syntax node's fields within a scope of its own."""
        self.scopes.append(scope)
        self.fields(node)
        self.scopes.pop()

    def function(self, node: Any) -> None:
        """Write a function or lambda; its decorators and defaults belong to the scope around it."""
        arguments = node.args
        self.text(type(node).__name__)
        if self.scopes and hasattr(node, "name"):
            self.name(node.name)
        self.write([mark for mark in getattr(node, "decorator_list", []) if not is_register(mark)])
        self.write([arguments.defaults, [default or "none" for default in arguments.kw_defaults]])
        body = node.body if isinstance(node.body, list) else [node.body]
        scope = self.project.scope(body, self.module)
        scope.names |= {part.arg for part in ast.walk(arguments) if isinstance(part, ast.arg)}
        self.scopes.append(scope)
        for kind in ("posonlyargs", "args", "vararg", "kwonlyargs", "kwarg"):
            value = getattr(arguments, kind)
            if value:
                self.text(f" {kind}=")
                self.write(value)
        self.write(body)
        self.scopes.pop()

    def name(self, name: str) -> None:
        """Write a name: a local one as its number, a class member as it is, a global one as what it names."""
        scope = self.scope_of(name)
        if scope is None:
            meanings = self.project.lookup(self.module, name)
            self.text(f'"{name}"') if meanings is None else self.meanings(meanings)
        elif name in scope.imports:
            self.meanings([self.project.resolve(path) for path in scope.imports[name]])
        elif scope.is_class:
            self.text(f"member {_renamed(name)} ")
        else:
            if name not in scope.numbers:
                scope.numbers[name], self.count = self.count, self.count + 1
            self.text(f"${scope.numbers[name]} ")

    def scope_of(self, name: str) -> Scope | None:
        """Return the innermost scope that binds a name; functions do not see the names of a class around them."""
        visible = [scope for scope in self.scopes[:-1] if not scope.is_class] + self.scopes[-1:]
        return next((scope for scope in reversed(visible) if name in scope.names | scope.imports.keys()), None)

    def meanings(self, meanings: Iterable[Key | str]) -> None:
        """Write the definitions and paths that a name refers to; a module stands for all its public definitions."""
        for meaning in meanings:
            if isinstance(meaning, str) and meaning in self.project.sources:
                meaning = Key(meaning, "*")
            self.text(meaning)

    def write_Name(self, node: ast.Name) -> None:
        """Write the name that a syntax node holds, as `name` does."""
        self.name(node.id)

    def write_Attribute(self, node: ast.Attribute) -> None:
        """Write module.name as the definition that it names, any other attribute by its name."""
        path = self.path(node)
        if path is None:
            return self.fields(node)
        meaning = self.project.resolve(path)
        external = path.partition(".")[0] not in self.project.sources
        if external or isinstance(meaning, Key) or meaning in self.project.sources:
            return self.meanings([meaning])
        return self.fields(node)  # an attribute of a class or constant

    def path(self, node: ast.expr) -> str | None:
        """Return the dotted path of an imported name or an attribute of one, else None."""
        if isinstance(node, ast.Attribute):
            path = self.path(node.value)
            return path and f"{path}.{node.attr}"
        if not isinstance(node, ast.Name):
            return None
        scope = self.scope_of(node.id)
        imports = self.project.imports(self.module) if scope is None else scope.imports
        paths = imports.get(node.id, [])
        return paths[0] if len(paths) == 1 else None

    def write_Constant(self, node: ast.Constant) -> None:
        """Write a constant; the text "package.module:name" as the definition that it names."""
        value = node.value
        if isinstance(value, str) and re.fullmatch(r"seerbench(\.\w+)+:\w+", value):
            return self.meanings([self.project.resolve(value.replace(":", "."))])
        self.text(repr(value))

    def write_arg(self, node: ast.arg) -> None:
        """Write an argument by its name."""
        self.name(node.arg)
        self.constexpr(node.annotation)

    def write_AnnAssign(self, node: ast.AnnAssign) -> None:
        """Write an assignment without its annotation."""
        if node.value is not None:  # _says_nothing leaves out annotations without a value
            self.fields(ast.Assign(targets=[node.target], value=node.value))
        self.constexpr(node.annotation)

    def constexpr(self, annotation: ast.expr | None) -> None:
        """Write that Triton compiles for each value of an argument, the one annotation that changes a kernel."""
        if annotation is not None and ast.unparse(annotation).endswith("constexpr"):
            self.text(" constexpr")

    def write_Raise(self, node: ast.Raise) -> None:
        """Write that something is raised; the error and its message do not count."""
        self.text("Raise")

    def write_ClassDef(self, node: ast.ClassDef) -> None:
        """Write a class that is defined inside a function."""
        self.name(node.name)
        self.write([*node.bases, *node.keywords, *node.decorator_list])
        self.scopes.append(Scope(self.project.scope(node.body, self.module).names, is_class=True))
        self.write(node.body)
        self.scopes.pop()


def _scope(body: Iterable[ast.AST], module: str) -> Scope:
    """Return the names that statements bind in their own scope, nested functions and comprehensions left out."""
    scope, outside, todo = Scope(), set(), list(body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            for alias in node.names:
                path = alias.name if alias.asname else alias.name.partition(".")[0]
                scope.imports.setdefault(alias.asname or path, []).append(path)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            for alias in node.names:
                path = ".".join([*package, *([node.module] if node.module else []), alias.name])
                scope.imports.setdefault(alias.asname or alias.name, []).append(path)
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            outside |= set(node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            scope.names.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            scope.names.add(node.name)
            continue
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
            scope.names.add(node.name)
        if isinstance(node, ast.comprehension):
            todo += [node.iter, *node.ifs]
        elif not isinstance(node, ast.Lambda):
            todo += ast.iter_child_nodes(node)
    scope.imports = {name: list(dict.fromkeys(paths)) for name, paths in scope.imports.items()}
    scope.names -= outside
    return scope


def _stored(node: ast.AST) -> list[str]:
    """Return the names that a syntax node assigns to, in the order of `ast.walk`, one entry per assignment."""
    return [part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)]


def is_register(mark: ast.expr) -> bool:
    """Return whether a decorator is `@register(...)`, which puts a method into the catalogue."""
    return isinstance(mark, ast.Call) and getattr(mark.func, "id", None) == "register"


def _says_nothing(node: Any) -> bool:
    """Return whether a statement leaves no trace: docstring, pass, import, annotation without value."""
    constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    bare = isinstance(node, ast.AnnAssign) and node.value is None
    return constant or bare or isinstance(node, (ast.Pass, ast.Global, ast.Nonlocal, *IMPORTS))


def _is_empty(value: ast.expr) -> bool:
    """Return whether an expression is None, False or (): what an optional member is by default."""
    if isinstance(value, ast.Tuple):
        return not value.elts
    return isinstance(value, ast.Constant) and (value.value is None or value.value is False)


def _computes_nothing(function: Any) -> bool:
    """Return whether a function is empty, only returns an argument, None, False or (), or only raises."""
    body = [statement for statement in function.body if not _says_nothing(statement)]
    if len(body) != 1 or not isinstance(body[0], ast.Return):
        return not body or (len(body) == 1 and isinstance(body[0], ast.Raise))
    value, arguments = body[0].value, {part.arg for part in ast.walk(function.args) if isinstance(part, ast.arg)}
    return value is None or _is_empty(value) or (isinstance(value, ast.Name) and value.id in arguments)


def _renamed(name: str) -> str:
    """Return the present name of a member, attribute or keyword."""
    return RENAMED.get(name, name)
