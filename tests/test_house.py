"""The house: imports run downwards, and each is at the top of its file, where a reader sees it."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("", "data", "lib", "tools")
FILES = [path for folder in FOLDERS for path in (ROOT / folder).glob("*.py")]
FILES = [path.relative_to(ROOT) for path in FILES if not path.name.startswith("test_")]
MODULES = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}


def imports(tree):
    """The full names that the import statements of a syntax tree may mean."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "no relative imports: a file says what it reads"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


TREES = {name: ast.parse((ROOT / path).read_text()) for name, path in MODULES.items()}
GRAPH = {name: {*imports(TREES[name])} & {*MODULES} - {name} for name in TREES}


def test_no_import_circle():
    assert len(list(TopologicalSorter(GRAPH).static_order())) == len(GRAPH) > 30


def test_nothing_but_a_tool_imports_a_tool_and_only_a_program_above_it_imports_train():
    for name, others in GRAPH.items():
        if not name.startswith("tools."):
            assert not [other for other in others if other.startswith("tools.")], name
        assert "train" not in others or name == "curr_reft", name


def test_data_imports_data_alone_and_lib_nothing_above_model():
    for name, others in GRAPH.items():
        folder = name.partition(".")[0]
        allowed = {"data": ("data.",), "lib": ("data", "lib", "model")}.get(folder)
        for other in others if allowed else ():
            assert other.startswith(allowed), f"{name} imports {other}"


def test_no_import_of_the_project_hides_in_a_function():
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.name != "__getattr__" or node not in tree.body, name
                assert not {*imports(node)} & {*MODULES}, f"{name}.{node.name}"


def test_train_is_at_most_nine_floors_up():
    floors = {}
    for name in TopologicalSorter(GRAPH).static_order():
        floors[name] = 1 + max((floors[other] for other in GRAPH[name]), default=0)
    assert floors["train"] <= 9
