"""The layers of the library: arrows point down only, from the syntax tree."""

import ast
from pathlib import Path

SRC = Path(__file__).parent.parent / "src" / "inf_middleware"

# From the bottom up; members of one layer do not know each other, unless they share a folder.
LAYERS = [
    {"domain"},
    {"background", "files"},
    {"wire"},
    {"tokens"},
    {"ports"},
    {"accounts", "stores", "ledgers", "sinks", "observers"},
    {"call"},
    {"upstream", "outgoing"},
    {"settings", "lookups", "sharing", "following"},
    {"limiting", "billing", "around", "observing"},
    {"exposition"},
    {"stack"},
    {"beside", "member"},
    {"token_meter", "tier_limiter", "cost_ledger"},
    {"gate", "routes"},
    {"proxy"},
    {"cli"},
    {"__init__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
ADAPTERS = {"accounts", "stores", "ledgers", "sinks", "observers"}


def modules() -> list[tuple[str, str, ast.Module]]:
    found = []
    for path in sorted(SRC.rglob("*.py")):
        inside = path.relative_to(SRC)
        top = inside.parts[0].removesuffix(".py")
        found.append((top, str(inside), ast.parse(path.read_text("utf-8"))))
    return found


def imports(tree: ast.Module) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            assert node.module is not None
            if node.module == "inf_middleware":
                names += [f"inf_middleware.{alias.name}" for alias in node.names]
            else:
                names.append(node.module)
    return names


def test_every_module_has_its_layer() -> None:
    assert {top for top, _, _ in modules()} <= set(LEVEL)


def test_imports_point_down_and_siblings_do_not_know_each_other() -> None:
    wrong = []
    for top, path, tree in modules():
        for name in imports(tree):
            if name == "inf_middleware":
                wrong.append(f"{path} imports the facade")
            if not name.startswith("inf_middleware."):
                continue
            target = name.split(".")[1]
            if target == top:
                continue
            if LEVEL.get(target, 99) >= LEVEL[top]:
                wrong.append(f"{path} imports {name}")
    assert wrong == []


def test_the_call_knows_ports_and_never_an_adapter() -> None:
    wrong = [
        f"{path} imports {name}"
        for top, path, tree in modules()
        if top == "call"
        for name in imports(tree)
        if name.startswith("inf_middleware.") and name.split(".")[1] in ADAPTERS
    ]
    assert wrong == []


def test_wire_is_sans_io() -> None:
    for top, path, tree in modules():
        if top != "wire":
            continue
        assert not any(
            isinstance(node, ast.AsyncFunctionDef | ast.Await) for node in ast.walk(tree)
        ), f"{path} is async"
        assert not {"asyncio", "anyio", "time", "logging"} & set(imports(tree)), path


def test_nothing_is_imported_for_types_only() -> None:
    for _, path, tree in modules():
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert "TYPE_CHECKING" not in names, path
