"The house: what may import what, how many names a module shows, and how its code is written."
import ast
import json
import re

import pytest
from checkout import ROOT, files

PACKAGE = "attentiondrop_nb"
EXPLORER = f"{PACKAGE}.explorer"
NOTEBOOKS = files("nbs", ".ipynb")
MODULES = [p for p in files(PACKAGE, ".py") if p.name not in ("__init__.py", "_modidx.py")]
LONGEST_LINE, LONGEST_FUNCTION, MOST_NAMES, MOST_NAMES_IN_ALL = 120, 25, 25, 260


def name(path):
    return str(path.relative_to(ROOT))


def code_cells(path):
    "The sources of a notebook's code cells that are Python (a magic is none)."
    cells = json.loads(path.read_text())["cells"]
    sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    return [re.sub(r"^[%!].*$", "", source, flags=re.M) for source in sources]


def lesson_numbers():
    """{module: number} of the lessons that export one; an appendix without a number has −1: it may be imported by all.

    The explorer is an appendix that imports lessons, so no lesson and no other appendix may import it.
    """
    numbers = {}
    for path in NOTEBOOKS:
        module = re.search(r"^#\|\s*default_exp\s+([\w.]+)", "\n".join(code_cells(path)), re.M)
        if module:
            digits = re.match(r"(\d+)_", path.name)
            numbers[f"{PACKAGE}.{module[1]}"] = int(digits[1]) if digits else -1
    return numbers | {EXPLORER: 1000}


def names_at_the_top():
    "{name: module} of what the package itself shows."
    tree = ast.parse((ROOT / PACKAGE / "__init__.py").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: f"{PACKAGE}.{node.module}" for node in imports for alias in node.names}


AT_THE_TOP = names_at_the_top()


def imported_modules(tree):
    """Dotted names of all that a syntax tree imports, in functions too; `from a.b import c` gives a.b and a.b.c.

    What is imported from the package itself counts as imported from the module that defines it.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            if node.module == PACKAGE:
                yield from (AT_THE_TOP[alias.name] for alias in node.names if alias.name in AT_THE_TOP)


NUMBERS = lesson_numbers()


def wrong_imports(sources, own):
    "Lessons among the imports of `sources` whose number is not below `own`."
    found = {module for source in sources for module in imported_modules(ast.parse(source))}
    return sorted(module for module in found if NUMBERS.get(module, -2) >= own)


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if re.match(r"\d+_", p.name)], ids=name)
def test_a_lesson_imports_lower_numbers_only(path):
    own = int(path.name.split("_")[0])
    assert not wrong_imports(code_cells(path), own)


def test_an_appendix_imports_no_lesson():
    for path in NOTEBOOKS:
        if path.parent.name == "nbs" and path.stem not in ("index", "notation", "project", "explorer"):
            found = {module for source in code_cells(path) for module in imported_modules(ast.parse(source))}
            assert not {m for m in found & NUMBERS.keys() if NUMBERS[m] >= 0}, path.name


def test_the_finder_of_imports_finds():
    later = "def f():\n    from attentiondrop_nb.speed.cpu import fast_drop2d"
    assert wrong_imports([later], NUMBERS[f"{PACKAGE}.layers.layers"]) == [f"{PACKAGE}.speed.cpu"]
    assert not wrong_imports([later], NUMBERS[f"{PACKAGE}.speed.cpu"] + 1)
    assert wrong_imports([f"from {PACKAGE} import attach"], 3) == [f"{PACKAGE}.layers.attach"]
    assert wrong_imports([f"from {EXPLORER} import explore"], 30) == [EXPLORER]
    assert wrong_imports([f"import {PACKAGE}.speed.cpu as c"], 3) and wrong_imports(
        [f"from {PACKAGE}.speed import cpu"], 3
    )


def test_numbers_run_through_and_folders_are_in_order():
    lessons = sorted((int(p.name.split("_")[0]), int(p.parent.name[0])) for p in NOTEBOOKS if re.match(r"\d+_", p.name))
    assert [number for number, _ in lessons] == list(range(len(lessons)))
    assert [part for _, part in lessons] == sorted(part for _, part in lessons)


def test_a_module_lies_where_its_lesson_lies():
    for path in NOTEBOOKS:
        module = re.search(r"^#\|\s*default_exp\s+([\w.]+)", "\n".join(code_cells(path)), re.M)
        if module and re.match(r"\d+_", path.name):
            assert module[1] == f"{path.parent.name[2:]}.{path.stem.split('_', 1)[1]}"


def public_names(path):
    "What `__all__` of a module lists."
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
            return [element.value for element in node.value.elts]
    return []


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_shows_few_names(path):
    assert len(public_names(path)) <= MOST_NAMES


def test_the_package_shows_few_names_and_none_twice():
    names = [public for path in MODULES for public in public_names(path)]
    twice = {public for public in names if names.count(public) > 1} - {"fast_drop2d"}  # one for each type of device
    assert len(names) <= MOST_NAMES_IN_ALL and not twice, (len(names), twice)


def ugly(tree):
    "(line, what is wrong) of constructs that this project does not use."
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Tuple):
            yield node.lineno, "statements joined by commas"
        if isinstance(node, ast.IfExp) and any(isinstance(n, ast.IfExp) for n in (node.body, node.test, node.orelse)):
            yield node.lineno, "a conditional inside a conditional"
        if is_product(node) and any(map(is_text, (node.left, node.right))):
            yield node.lineno, "text times something"
        if is_packed(node) and unrelated(node.value.elts) and not is_swap(node):
            yield node.lineno, "unrelated things in one assignment"


def unrelated(values):
    "Are they of different kinds, or calls that share neither the function nor the arguments?"
    if len({type(value) for value in values}) > 1:
        return True
    calls = [value for value in values if isinstance(value, ast.Call)]
    functions = {getattr(call.func, "attr", ast.unparse(call.func)) for call in calls}
    arguments = {tuple(map(ast.unparse, [*call.args, *call.keywords])) for call in calls}
    return len(functions) > 1 and len(arguments) > 1


def is_swap(node):
    "Does a value need the old value of a name that is assigned in the same line?"
    new = {n.id for n in ast.walk(node.targets[0]) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return any(isinstance(n, ast.Name) and n.id in new for n in ast.walk(node.value))


def joined_lines(tree):
    "(line, what is wrong) of statements that share a line: `a(); b()`, `if a: b()`; a last `;` hides a plot's value."
    for node in ast.walk(tree):
        blocks = [getattr(node, block, None) for block in ("body", "orelse", "finalbody")]
        starts = [statement.lineno for block in blocks if isinstance(block, list) for statement in block]
        if len(set(starts)) < len(starts) or getattr(node, "lineno", 0) in starts:
            yield getattr(node, "lineno", 1), "two statements in one line"


def too_long(tree):
    "(line, what is wrong) of functions that do not fit on a screen."
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and body_lines(node) > LONGEST_FUNCTION:
            yield node.lineno, f"{node.name} has {body_lines(node)} lines"


def is_text(node):
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def is_product(node):
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)


def is_packed(node):
    "Does a line give several values to several names?"
    several = isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)
    return several and isinstance(node.targets[0], ast.Tuple)


def body_lines(function):
    "Lines of a function's body, its docstring not counted."
    body = function.body
    documented = isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
    if documented and len(body) == 1:
        return 0
    return body[-1].end_lineno - body[1 if documented else 0].lineno + 1


def complaints(source, length=True):
    "What is wrong with a source, a line each; `length`: the length of functions too."
    tree = ast.parse(source)
    wrong = [*ugly(tree), *joined_lines(tree), *(too_long(tree) if length else ())]
    found = [f"line {line}: {what}" for line, what in wrong]
    long = [i for i, line in enumerate(source.splitlines(), 1) if len(line) > LONGEST_LINE]
    return found + [f"line {i}: longer than {LONGEST_LINE}" for i in long]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_notebooks_are_written_plainly(path):
    found = {}
    for i, source in enumerate(code_cells(path)):
        if complaints(source):
            found[f"code cell {i}, {source.splitlines()[0][:50]!r}"] = complaints(source)
    assert not found


@pytest.mark.parametrize("path", files("tests", ".py") + files("tools", ".py"), ids=name)
def test_tests_are_written_plainly(path):
    assert not complaints(path.read_text(), length=False)  # a test may tell a long story


def test_the_finder_of_ugly_code_finds():
    assert complaints("f(), g()") and complaints("a if b else c if d else e") and complaints("'x' * flag")
    assert complaints("x = 1  ".ljust(121, "#")) and complaints("def f():\n" + "".join(["    g()\n"] * 26))
    assert complaints("a = 1; b = 2") and complaints("if a: b()") and complaints("a, b = [], {}")
    assert complaints("a, b = f(x), g(y)") and not complaints("a, b = f(x), g(x)") and not complaints("a, b = b, a + b")
    assert not complaints("def f():\n    'doc'\n    return (1, 2) if x else 3\n") and not complaints("plot(x);")


MOST_CELLS, LONGEST_CELL = 60, 25
PARAMETERS = 'dataset: str = "digits"'  # of a run: a list, one a line


def is_import(source):
    "Is a cell made of imports alone?"
    body = ast.parse(source).body
    return bool(body) and all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in body)


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if re.match(r"\d+_", p.name)], ids=name)
def test_a_lesson_opens_with_its_question_and_is_one_sitting(path):
    cells = json.loads(path.read_text())["cells"]
    texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
    assert re.match(r"# .+\n\n> .+", texts[0]) and texts[1].startswith("## The question")
    before = cells[: [("".join(c["source"])) for c in cells].index(texts[1])]
    assert not [c for c in before if c["cell_type"] == "code" and is_import("".join(c["source"]))]
    assert len(cells) <= MOST_CELLS and "notation.ipynb" in texts[1] + texts[2]
    assert any("## Exercises" in text for text in texts)
    assert path.parent.name == "5_speed" or any(re.search("leaves open|can and cannot say", text) for text in texts)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_a_cell_fits_on_a_screen(path):
    for source in code_cells(path):
        lines = [line for line in source.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        one_class = any(isinstance(node, ast.ClassDef) for node in ast.parse(source).body)  # a class is one cell
        assert len(lines) <= LONGEST_CELL or one_class or PARAMETERS in source, source[:200]


LESSONS = sorted((p for p in NOTEBOOKS if re.match(r"\d+_", p.name)), key=lambda p: p.name)


def cells_of(path, kind):
    "The sources of a notebook's cells of a `kind`."
    return ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == kind]


@pytest.mark.parametrize("path", LESSONS, ids=name)
def test_a_lesson_can_be_opened_in_colab_and_leads_to_its_neighbours(path):
    first = "".join(json.loads(path.read_text())["cells"][0]["source"])
    assert 'if "google.colab" in sys.modules' in first and "pip install" in first
    texts = cells_of(path, "markdown")
    assert f"/blob/main/{name(path)})" in texts[1] + texts[2]
    at = LESSONS.index(path)
    neighbours = [LESSONS[i].name for i in (at - 1, at + 1) if 0 <= i < len(LESSONS)]
    assert texts[-1].startswith("←") and all(f"{other})" in texts[-1] for other in neighbours)


@pytest.mark.parametrize("path", LESSONS, ids=name)
def test_a_lesson_ends_with_what_we_know_and_exercises_that_check(path):
    texts = cells_of(path, "markdown")
    code = cells_of(path, "code")
    assert any("## What we know now" in text for text in texts)
    checks = set(re.findall(r"^(check_\w+) = exercise\(", "\n".join(code), re.M))
    asked = {check for check in checks if any(re.search(rf"^{check}\(.+\);$", cell, re.M) for cell in code)}
    solved = {check for check in checks if any(re.search(rf"assert .*{check}\(", cell) for cell in code)}
    assert len(checks) >= 3 and asked == checks and solved == checks, (checks, asked, solved)


@pytest.mark.parametrize("path", [p for p in LESSONS if p.parent.name != "5_speed"], ids=name)
def test_a_lesson_has_about_as_much_prose_as_code(path):
    ratio = len(cells_of(path, "markdown")) / len(cells_of(path, "code"))
    assert 0.6 <= ratio <= 1.3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_a_title_cell_has_a_title_and_one_line(path):
    "The site makes front matter of it, so anything more in this cell would be lost there."
    assert re.fullmatch(r"# .+\n\n> .+", cells_of(path, "markdown")[0])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_every_figure_says_what_it_shows(path):
    for cell in json.loads(path.read_text())["cells"]:
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])):
            assert re.search(r"^#\| fig-alt: .{20,}", "".join(cell["source"]), re.M), "".join(cell["source"])[:200]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_a_claim_is_called_by_its_words(path):
    "Not by the number of its row, which changes when runs come in."
    lines = [line for text in cells_of(path, "markdown") for line in text.splitlines() if "claims.ipynb" in line]
    assert not [line for line in lines if re.search(r"\brows? \d", line, re.I)]
