"""Generated classes: a module's own forward, with its SDPA call replaced.

The forward is rewritten once, when the class is generated: every call of
`torch.nn.functional.scaled_dot_product_attention` becomes `self._attend`, every return first
checks that a replaced call ran. Globals, defaults, file name and line numbers stay, so a
traceback shows the original line and `torch.compile` sees plain code.
"""

from __future__ import annotations

import ast
import copyreg
import functools
import inspect
import textwrap
import types
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

SDPA = F.scaled_dot_product_attention
_RAN = "_posenc_attention_ran"


class CannotRewrite(Exception):  # noqa: N818, a reason rather than an error
    """Why a forward cannot be rewritten, in words."""


def generate_class(original: type[nn.Module], members: dict[str, Any]) -> type[nn.Module]:
    """A final subclass of `original` with these members, named like it and picklable."""
    return type(
        f"Posenc{original.__name__}",
        (original,),
        {
            "__module__": original.__module__,
            "__doc__": original.__doc__,
            "__reduce_ex__": _reduce,
            "posenc_original_class": original,
            **members,
        },
    )


def rebuild_with(factory: Callable[..., type[nn.Module]], *arguments: Any) -> Any:
    """Member that tells pickle how to generate the class again."""
    return staticmethod(lambda: (factory, arguments))


def _reduce(self: Any, protocol: int) -> tuple[Any, ...]:
    # The generated class has no importable name: pickle its recipe and the plain state.
    factory, arguments = type(self)._posenc_recipe()
    get_state = getattr(self, "__getstate__", None)
    state = get_state() if get_state is not None else self.__dict__
    return _rebuild, (factory, arguments), state


def _rebuild(factory: Callable[..., type[nn.Module]], arguments: tuple[Any, ...]) -> nn.Module:
    generated = factory(*arguments)
    return copyreg.__newobj__(generated)  # type: ignore[attr-defined]


@functools.cache
def rewritten_forward(original: Any) -> Callable[..., Tensor]:
    """The forward of `original` with its SDPA calls replaced by `self._attend`.

    Raises:
        CannotRewrite: there is no source, no such call, or the call is out of reach.
    """
    forward = original.forward
    tree, function = parse_method(forward)
    check_self_contained(function)
    rewriter = _ReplaceAttention(_global_names(forward))
    rewriter.rewrite(function)
    if not rewriter.replaced:
        raise CannotRewrite("its forward does not call F.scaled_dot_product_attention")
    return compile_method(tree, function, forward)


def parse_method(method: Callable[..., Any]) -> tuple[ast.Module, ast.FunctionDef]:
    """The syntax tree of a plain method, with the line numbers of its file.

    Raises:
        CannotRewrite: no source, decorated, or a closure.
    """
    if not isinstance(method, types.FunctionType):
        raise CannotRewrite(f"its forward is {type(method).__name__}, not a plain method")
    if hasattr(method, "__wrapped__"):
        raise CannotRewrite("its forward is decorated")
    if set(method.__code__.co_freevars) - {"__class__"}:
        raise CannotRewrite("its forward is a closure")
    try:
        lines, first = inspect.getsourcelines(method)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError) as error:
        raise CannotRewrite(f"its source is not available ({error})") from error
    ast.increment_lineno(tree, first - 1)
    function = tree.body[0]
    if not isinstance(function, ast.FunctionDef) or function.decorator_list:
        raise CannotRewrite("its forward is decorated or not a function")
    return tree, function


def compile_method(tree: ast.Module, function: ast.FunctionDef, method: Any) -> Callable[..., Any]:
    """The tree's only function, with the globals, defaults and file of `method`."""
    # Defaults and annotations are taken over, not evaluated a second time.
    for argument in ast.walk(function.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    function.returns = None
    function.args.defaults = [ast.Constant(None) for _ in function.args.defaults]
    function.args.kw_defaults = [d and ast.Constant(None) for d in function.args.kw_defaults]
    ast.fix_missing_locations(tree)
    module_code = compile(tree, method.__code__.co_filename, "exec", dont_inherit=True)
    code = next(c for c in module_code.co_consts if isinstance(c, types.CodeType))
    result = types.FunctionType(
        code, method.__globals__, method.__name__, method.__defaults__, None
    )
    result.__kwdefaults__ = method.__kwdefaults__
    result.__doc__ = method.__doc__
    result.__qualname__ = method.__qualname__
    result.__module__ = method.__module__
    result.__annotations__ = dict(method.__annotations__)
    return result


def check_self_contained(function: ast.FunctionDef) -> None:
    """Raises CannotRewrite when the method means something else outside its class."""
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and node.id in ("super", "__class__"):
            raise CannotRewrite(f"its forward delegates to its parent class ({node.id})")
        name = getattr(node, "attr", getattr(node, "id", ""))
        if isinstance(name, str) and name.startswith("__") and not name.endswith("__"):
            raise CannotRewrite(f"its forward uses the private name {name}")


def self_name(function: ast.FunctionDef) -> str:
    """What the method calls its module."""
    positional = [*function.args.posonlyargs, *function.args.args]
    if not positional:
        raise CannotRewrite("its forward takes no named self")
    return positional[0].arg


def _global_names(method: Any) -> dict[str, Any]:
    """The globals that the method sees: its own variables hide some."""
    hidden = {*method.__code__.co_varnames, *method.__code__.co_cellvars}
    return {name: value for name, value in method.__globals__.items() if name not in hidden}


class _ReplaceAttention(ast.NodeTransformer):
    """`sdpa(...)` -> `(_ran := True) and self._attend(...)`; `return x` checks `_ran` first."""

    def __init__(self, names: dict[str, Any]) -> None:
        self.names = names
        self.replaced = False
        self.self_name = "self"

    def rewrite(self, function: ast.FunctionDef) -> None:
        self.self_name = self_name(function)
        body = [self.visit(statement) for statement in function.body]
        start = ast.parse(f"{_RAN} = False").body
        end = self._check()
        flat = [s for part in body for s in (part if isinstance(part, list) else [part])]
        # A docstring stays first; the line of the first statement is as good as any.
        for statement in [*start, end]:
            for node in ast.walk(statement):
                ast.copy_location(node, function.body[0])
        function.body = [*start, *flat, end]

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if self._value_of(node.func) is not SDPA:
            return node
        self.replaced = True
        # `ran := True` goes along with the call: a branch of the forward may skip it, as timm's
        # unfused path does, and then the module would be without positions, silently.
        attend = ast.Attribute(ast.Name(self.self_name, ast.Load()), "_attend", ast.Load())
        # The line of a method call is that of its name, which stands where `F.sdpa` stood.
        ast.copy_location(attend, node.func)
        ran = ast.NamedExpr(ast.Name(_RAN, ast.Store()), ast.Constant(True))
        call = ast.Call(attend, node.args, node.keywords)
        both = ast.BoolOp(ast.And(), [ran, call])
        return ast.fix_missing_locations(ast.copy_location(both, node))

    def visit_Return(self, node: ast.Return) -> list[ast.stmt]:
        self.generic_visit(node)
        # The value is computed first: the call may stand in the return itself.
        result = "_posenc_result"
        assign = ast.Assign([ast.Name(result, ast.Store())], node.value or ast.Constant(None))
        give = ast.Return(ast.Name(result, ast.Load()))
        statements: list[ast.stmt] = [assign, self._check(), give]
        return [ast.fix_missing_locations(ast.copy_location(s, node)) for s in statements]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._refuse_inside(node)

    def visit_ListComp(self, node: ast.ListComp) -> ast.AST:
        return self._refuse_inside(node)

    def visit_SetComp(self, node: ast.SetComp) -> ast.AST:
        return self._refuse_inside(node)

    def visit_DictComp(self, node: ast.DictComp) -> ast.AST:
        return self._refuse_inside(node)

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> ast.AST:
        return self._refuse_inside(node)

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        return self._refuse_inside(node)

    def _refuse_inside(self, node: ast.AST) -> ast.AST:
        calls = (n for n in ast.walk(node) if isinstance(n, ast.Call))
        if any(self._value_of(call.func) is SDPA for call in calls):
            raise CannotRewrite("its attention call is inside a nested function or comprehension")
        return node

    def _check(self) -> ast.stmt:
        return ast.parse(f"if not {_RAN}: {self.self_name}._no_attention_ran()").body[0]

    def _value_of(self, node: ast.expr) -> Any:
        """What a dotted name refers to in the method's globals."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if isinstance(node, ast.Attribute):
            return getattr(self._value_of(node.value), node.attr, None)
        return None
