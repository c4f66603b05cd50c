"""Commands with the options of recognition of every family."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from runtime.family import Family
    from runtime.options import FieldFlag

_PREFIX = "family_option_"


class RecognitionCommand(TyperCommand):
    """A command that has every family's options, too; `context.obj` holds what was typed behind each flag.

    The families are asked where the command is run or explains itself: their models take a while to load.
    """

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the command's own parameters and those of the families, which are made once."""
        if not any(str(parameter.name).startswith(_PREFIX) for parameter in self.params):
            self.params += _parameters()
        return super().get_params(ctx)

    def invoke(self, ctx: Any) -> Any:
        """Run the command, which is given the families' options by `context.obj`."""
        names = {parameter.name: parameter.opts[0] for parameter in self.params}
        typed = {name: ctx.params.pop(name) for name in list(ctx.params) if name.startswith(_PREFIX)}
        ctx.obj = {names[name]: value for name, value in typed.items() if value not in (None, (), [])}
        return super().invoke(ctx)


def _parameters() -> list[Any]:
    """Return the parameters of every flag that a family has, those of several families first."""
    from runtime.families import FAMILIES, family_named

    owners: dict[str, list[tuple[Family[Any, Any], FieldFlag]]] = {}
    for family in map(family_named, FAMILIES):
        for name, flag in family.options.flags().items():
            owners.setdefault(name, []).append((family, flag))
    order = sorted(owners.items(), key=lambda item: len(item[1]) == 1)

    def callback() -> None:
        """Have the parameters that typer reads from a signature."""

    parameters = [
        inspect.Parameter(
            _PREFIX + name.removeprefix("--").replace("-", "_"),
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=_annotation(name, known, every=len(known) == len(FAMILIES)),
        )
        for name, known in order
    ]
    callback.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    callback.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app = typer.Typer(add_completion=False)
    app.command(add_help_option=False)(callback)
    return list(typer.main.get_command(app).params)


def _annotation(name: str, known: list[tuple[Family[Any, Any], FieldFlag]], *, every: bool) -> Any:
    """Return the type of a flag's parameter, with its names and its help."""
    first = known[0][1]
    families = [family for family, _ in known]
    kind = " and ".join(dict.fromkeys(family.kind for family in families))
    helps = dict.fromkeys(flag.help for _, flag in known)
    option = typer.Option(
        f"{name}/--no-{name.removeprefix('--')}" if first.is_switch else name,
        help=next(iter(helps))
        if len(helps) == 1
        else " ".join(f"{family.title}: {flag.help}" for family, flag in known),
        metavar=None if first.is_switch else _metavar([flag for _, flag in known]),
        show_default=False,
        rich_help_panel=None if every else f"{kind} ({families[0].title if len(known) == 1 else 'several families'})",
    )
    if first.is_switch:
        return Annotated[bool | None, option]
    return Annotated[list[str] | None, option] if first.flag.several else Annotated[str | None, option]


def _metavar(flags: list[FieldFlag]) -> str:
    """Return what stands for the value: every choice that a family has."""
    return "|".join(dict.fromkeys(choice for flag in flags for choice in flag.metavar.split("|")))
