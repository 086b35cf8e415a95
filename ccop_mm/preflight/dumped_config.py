"""Configs as plain data: those dumped in checkpoints, which are never executed, and those of the current run."""

import ast
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

#: Number of characters of a value in a message.
MAX_LENGTH = 60


@dataclass(frozen=True)
class Expression:
    """A value that is not a literal, such as a class; two are equal if their source text is.

    Args:
        text (str): Normalized Python source.
    """

    text: str

    def __repr__(self) -> str:
        return self.text


#: Value of a key that one of two configs does not have.
UNSET = Expression('not set')


def parse_config(text: object) -> dict[str, Any] | None:
    """Evaluates the literals of a config that mmengine dumped, without executing the text.

    mmengine writes one assignment per top-level key. Literals, ``dict(...)`` calls, negative numbers, ``inf`` and
    ``nan`` are evaluated. Everything else becomes an :class:`Expression`.

    Args:
        text (object): ``meta['cfg']`` of a checkpoint.

    Returns:
        dict | None: Values by key, with lists instead of tuples. None if the text is not such a dump.
    """
    if not isinstance(text, str):
        return None
    config = {}
    try:
        for statement in ast.parse(text).body:
            if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
                return None
            config[statement.targets[0].id] = _evaluate(statement.value)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):  # of ast.parse, and for unhashable keys
        return None
    return config


def plain_config(value: Any) -> Any:
    """Converts a config to what :func:`parse_config` returns for its dump.

    Args:
        value (Any): Config after ``to_dict()``, or a part of it.
    """
    if isinstance(value, Mapping):
        return {key: plain_config(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_config(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, type):
        return Expression(value.__name__ if value.__module__ == 'builtins' else f'{value.__module__}.{value.__name__}')
    # mmengine dumps every other value by `str`.
    try:
        return _evaluate(ast.parse(str(value), mode='eval').body)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return Expression(str(value))


def differences(old: Any, new: Any, path: str = '') -> Iterator[tuple[str, Any, Any]]:
    """Yields the values that differ between two configs, with their path in the notation of ``--cfg-options``.

    Objects of different types are one difference, as are lists whose elements are not objects or whose lengths differ.
    None is taken to be equal to an absent value.

    Args:
        old (Any): Plain config, or a part of it.
        new (Any): Plain config to compare with.
        path (str): Path of both parts.

    Yields:
        tuple[str, Any, Any]: Path, old and new value; :data:`UNSET` for an absent value.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        names = [name.get('type', UNSET) for name in (old, new)]
        if names[0] != names[1] and '.' in path:
            yield f'{path}.type', *names
            return
        for key in sorted({*old, *new}, key=str):
            yield from differences(old.get(key, UNSET), new.get(key, UNSET), f'{path}.{key}' if path else str(key))
    elif _are_objects(old) and _are_objects(new) and len(old) == len(new):
        for number, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from differences(before, after, f'{path}.{number}')
    elif old != new and not all(value is None or value == UNSET for value in (old, new)):
        yield path, old, new


def format_value(value: Any) -> str:
    """Formats a value of a config for a message, with at most :data:`MAX_LENGTH` characters."""
    if _are_objects(value) and value:
        text = f'[{", ".join(str(item.get("type", "dict")) for item in value)}]'
    else:
        text = repr(value)
    return text if len(text) <= MAX_LENGTH else f'{text[: MAX_LENGTH - 3]}...'


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _evaluate(node: ast.expr) -> Any:
    """Evaluates an expression of literals and ``dict(...)``; returns an :class:`Expression` for any other."""
    match node:
        case ast.Constant(value=None | bool() | int() | float() | str() as value):
            return value
        case ast.Name(id='inf'):
            return math.inf
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            value = _evaluate(operand)
            return -value if isinstance(value, (int, float)) else Expression(ast.unparse(node))
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [_evaluate(element) for element in elements]
        case ast.Dict(keys=keys, values=values) if None not in keys:
            return {_evaluate(key): _evaluate(value) for key, value in zip(keys, values, strict=True) if key}
        case ast.Call(func=ast.Name(id='dict'), args=[], keywords=keywords) if all(k.arg for k in keywords):
            return {keyword.arg: _evaluate(keyword.value) for keyword in keywords}
        # A dict in a list whose keys are not identifiers.
        case ast.Call(func=ast.Name(id='dict'), args=[ast.Dict() as inner], keywords=[]):
            return _evaluate(inner)
    return Expression(ast.unparse(node))
