"""API reference: one page for each package, of all public names, from stubs and docstrings.

What is public is read from the source: the modules and names that a package's `__init__.pyi`
declares, and the public definitions of these modules. A Sphinx extension as well: docstrings are
Markdown-like, and become reStructuredText with cross-references here.
"""

import ast
import inspect
import re
import tokenize
from pathlib import Path

LIBRARY = Path(__file__).parents[1] / "pneumo_lib"
COMMANDS = "pneumo_lib.apps.cli"  # functions of the command line, which has a page of its own
# code, and the letter after it; what reStructuredText would take for a link or for emphasis
_CODE = re.compile(r"(?<![`\w:])`([^`]+)`(?!`)(\w?)|(?<=\w)_(?!\w)|\*")
_SEVERAL = re.compile(r"^( *)Returns:(?=\n +\w+: )", re.M)  # values, each with a name
_PROSE = re.compile(r"^( *)(Returns|Reference):$", re.M)  # Napoleon would cut it at its first colon
_SECTION = re.compile(r"(Args|Returns|Raises|Reference|Example):$")


def packages():
    """Dict from each package, as `pneumo_lib.data`, to its public modules, in the stub's order."""
    found = {}
    for stub in sorted(LIBRARY.rglob("__init__.pyi"), key=lambda path: path.parent):
        name = ".".join(stub.parent.relative_to(LIBRARY.parent).parts)
        modules = [f"{name}.{n}" for module, n in _stub(stub) if not module]
        found[name] = [module for module in modules if _path(module).is_file()]
    return found


def declared(package):
    """Full names, as `pneumo_lib.data.siim.read_cases`, of what the stub of a package declares.

    Each where it is defined: a module may lend what it imports.
    """
    names = [n for n in _stub(_path(package, "/__init__.pyi")) if n[0] and n[0][0] != "_"]
    return [_NAMES.get(f"{package}.{module}.{name}") or _NAMES[name] for module, name in names]


def _stub(path):
    """`(module, name)` of each import of a stub; `("", name)` for a module or package."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


def _path(module, suffix=".py"):
    return LIBRARY.parent / (module.replace(".", "/") + suffix)


def definitions(module):
    """`(name, kind, text)` of the public definitions of a module, in the order of the source.

    `kind` is "function", "class" or "data"; `text` of "data" is its value, a tab and its comment.
    """
    source = _path(module).read_text(encoding="utf-8")
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            yield from [(node.name, kind, "")] * (node.name[0] != "_")
        elif isinstance(node, ast.Assign):
            targets, values = node.targets, [node.value]
            if isinstance(targets[0], ast.Tuple):
                targets, values = targets[0].elts, getattr(node.value, "elts", targets[0].elts)
            for target, value in zip(targets, values, strict=True):
                name = ast.unparse(target)
                if name.isupper() and name[0] != "_":
                    yield name, "data", f"{ast.unparse(value)}\t{_comment(lines, node)}"


def _comment(lines, node):
    """The comment on the first or last line of a definition, or the lines of comment before it."""
    with_comment = lines[node.lineno - 1 : node.end_lineno]
    tokens = tokenize.generate_tokens(iter([f"{line}\n" for line in with_comment]).__next__)
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    found = [token.string for token in comments if token.start[0] in (1, len(with_comment))]
    found = [text for text in found if text != "# fmt: skip"]
    row = node.lineno - 2
    while not found[:1] and row >= 0 and lines[row].startswith("#"):
        row -= 1
    found = found or lines[row + 1 : node.lineno - 1]
    return " ".join(text.lstrip("#: ") for text in found)


def write_pages(folder):
    """Writes `index.rst` and a page for each package, and remembers all names for references."""
    folder.mkdir()
    readme = (LIBRARY / "README.md").read_text(encoding="utf-8")
    about = dict(re.findall(r"^\| `([\w/.]+?)/?` \| (.+) \|$", readme, re.M))
    about = {name.removesuffix(".py").replace("/", "."): text for name, text in about.items()}
    names = ["pneumo_lib.runs"]
    for package, modules in packages().items():
        if package != "pneumo_lib":
            names.append(package)
            sub = package.removeprefix("pneumo_lib.")
            _write(folder / f"{sub}.rst", sub, about[sub], modules, declared(package))
    _write(folder / "runs.rst", "runs", about["runs"], ["pneumo_lib.runs"], [])
    order = about_order(about, names)
    pages = "\n   ".join(order)
    listed = "\n".join(f"* :doc:`pl.{name} <{name}>`: {_ref(about[name])}." for name in order)
    top = _table(declared("pneumo_lib"))
    text = (folder.parent / "reference_index.rst").read_text(encoding="utf-8")
    (folder.parent / "reference_index.rst").unlink()
    text = text.format(top=top, pages=pages, listed=listed)
    (folder / "index.rst").write_text(text, encoding="utf-8")


def about_order(about, names):
    """Packages in the order of the library's README: down the floors."""
    wanted = {name.removeprefix("pneumo_lib.") for name in names}
    return [name for name in about if name in wanted]


def _write(path, name, about, modules, names):
    title = f"pl.{name}"
    text = [title, "=" * len(title), "", f"{_ref(about)[:1].upper()}{_ref(about)[1:]}.", ""]
    if names:
        text += [_table(names), ""]
    for module in modules:
        heading = module.removeprefix("pneumo_lib.")
        text += [heading, "-" * len(heading), "", f".. automodule:: {module}", ""]
        if module == COMMANDS:
            continue
        for public, kind, value in definitions(module):
            if kind == "data":
                literal, comment = value.split("\t")
                text += [f".. py:data:: {public}", f"   :module: {module}"]
                if len(literal) < 300 and not re.search(r"\b_[A-Z]", literal):  # no private name
                    text += [f"   :value: {literal}"]
                text += ["", f"   {_ref(comment, module)}", ""]
            else:
                text += [f".. auto{kind}:: {module}.{public}", ""]
                text += ["   :members:", ""][: 2 * (kind == "class")]
    path.write_text("\n".join(text).replace("\n\n   :members:", "\n   :members:"), encoding="utf-8")


def _table(names):
    constants = [name for name in names if name.rpartition(".")[2].isupper()]
    rows = [f"   ~{name}" for name in names if name not in constants]
    links = ", ".join(f":py:data:`~{name}`" for name in constants)
    text = [".. autosummary::", "   :nosignatures:", "", *rows, ""]
    return "\n".join([*text, f"Constants: {links}"] if constants else text)


# -- docstrings


def _known():
    """Full name of each public definition, or module, by each end of it: `siim.read_cases`."""
    modules = [module for found in packages().values() for module in found]
    defined = [f"{m}.{name}" for m in modules if m != COMMANDS for name, *_ in definitions(m)]
    known = {}
    for names in (modules, defined):  # a function that is named like its module wins
        ends = {}
        for name in names:
            parts = name.split(".")
            for start in range(len(parts)):
                ends.setdefault(".".join(parts[start:]), []).append(name)
        known |= {end: found[0] for end, found in ends.items() if len(found) == 1}
    return known


_NAMES = _known()


def _ref(text, module=""):
    """Markdown's backticks as a reference where they name something public, else as code.

    What a module defines itself comes first. A bare word is an argument or a column, not a name.
    """

    def role(match):
        if not match[1]:
            return f"\\{match[0]}"
        inner = " ".join(match[1].split())
        end = inner.removesuffix("()").removeprefix("pl.")
        name = _NAMES.get(f"{module}.{end}") or _NAMES.get(end)
        name = name if re.search(r"[A-Z.]|\(\)$", inner) else None
        code = f":py:obj:`{inner} <{name}>`" if name else f"``{inner}``"
        return f"{code}\\ {match[2]}" if match[2] else code

    return _CODE.sub(role, text)


def _convert(app, what, name, obj, options, lines):
    if what == "class":
        start = next((k for k, line in enumerate(lines) if _SECTION.match(line)), len(lines))
        lines[start:start] = _fields(obj)
    text = _PROSE.sub(_field, _SEVERAL.sub(r"\1Values:", "\n".join(lines)))
    lines[:] = _ref(text, name if what == "module" else getattr(obj, "__module__", "")).split("\n")


def _field(match):
    return f"{match[1]}:{match[2].lower()}:"


def _fields(cls):
    """Section on the fields of a dataclass or `NamedTuple`: the help or comment of each."""
    fields = getattr(cls, "__dataclass_fields__", {})
    texts = {name: one.metadata["help"] for name, one in fields.items() if one.metadata}
    if hasattr(cls, "_fields"):
        texts = dict(re.findall(r"^    (\w+): [^#\n]*  # (.+)$", inspect.getsource(cls), re.M))
    lines = [f"    {name}: {text}" for name, text in texts.items()]
    return ["Args:", *lines, ""] if lines else []


def _sign(app, what, name, obj, options, signature, returned):
    """No arguments of a class that takes those of its base class."""
    own = what != "class" or not signature or {"__init__", "__new__"} & {*vars(obj)}
    return None if own and signature != "(*args, **kwargs)" else ("", None)


def _skip(app, what, name, obj, skip, options):
    """A field of a `NamedTuple`, which Python describes by its number only."""
    return skip or (obj.__doc__ or "").startswith("Alias for field number")


def setup(app):
    app.connect("autodoc-process-docstring", _convert, priority=100)  # before Napoleon's
    app.connect("autodoc-process-signature", _sign)
    app.connect("autodoc-skip-member", _skip)
