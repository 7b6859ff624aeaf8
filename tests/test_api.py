"""The public names: complete, sorted, and free of charge until used."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from importlib import import_module

import pytest

import twotower


def test_all_is_sorted_and_says_each_name_once() -> None:
    by_case = sorted(set(twotower.__all__), key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    assert twotower.__all__ == by_case


@pytest.mark.parametrize("name", twotower.__all__)
def test_every_name_resolves_to_what_its_module_has(name: str) -> None:
    found = getattr(twotower, name)
    assert found is getattr(import_module(f"twotower.{twotower._MODULE_OF[name]}"), name)
    assert name in dir(twotower)


def test_what_a_type_checker_sees_is_what_is_there() -> None:
    tree = ast.parse(inspect.getsource(twotower))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported == twotower._MODULE_OF
    assert set(imported) == set(twotower.__all__)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'twotower' has no attribute 'Towr'"):
        getattr(twotower, "Towr")  # noqa: B009


@pytest.mark.parametrize(
    "module", ["twotower", "twotower.cli", "twotower.schema", "twotower.errors", "twotower.settings"]
)
def test_torch_is_not_imported_before_it_is_needed(module: str) -> None:
    heavy = "import sys; print([name for name in ('torch', 'pyarrow', 'numpy') if name in sys.modules])"
    shown = subprocess.run(
        [sys.executable, "-c", f"import {module}; {heavy}"], capture_output=True, text=True, check=True
    )
    assert shown.stdout == "[]\n"
