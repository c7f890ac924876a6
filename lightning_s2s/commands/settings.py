"""A command whose settings are one dataclass: `--config YAML` and an option for each field."""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar

from jsonargparse import ActionConfigFile, ArgumentParser, set_parsing_settings

from lightning_s2s.commands.messages import CommandError, Names, check_configs, explain, refuse_unknown_options

Settings = TypeVar("Settings")


def values_stay_values() -> None:
    """Let no parser build a class that stands where any value may, as in a component's `config`.

    Class paths that run commands (`os.system`, ...) are on jsonargparse's list of what is never imported, which is
    enforced from here on.
    """
    set_parsing_settings(
        omegaconf_absolute_to_relative_paths=True, instantiate_subclass_spec_in_any=False, import_path_denylist=[]
    )


class SettingsParser(ArgumentParser):
    """Raises each mistake as one line with near names, those of keys that hold a class from `names`."""

    names: Names | None = None

    def __init__(self, *args: Any, **kwargs: Any):
        values_stay_values()
        super().__init__(*args, **kwargs)

    def parse_args(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        """As usual, but an unknown option is told first."""
        if self.exit_on_error and args is not None:
            refuse_unknown_options(args, self._option_string_actions)
        return super().parse_args(args, *rest, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # jsonargparse tries alternatives with parsers of its own
            super().error(message, ex)
        raise CommandError(explain(message, self._option_string_actions, self.names)) from ex


def parse_settings(
    program: str, settings_class: type[Settings], arguments: list[str], names: Names | None = None
) -> Settings:
    """The dataclass, from YAML files and options; what comes later overrides.

    Args:
        program: the command, for its help.
        settings_class: a dataclass; its docstring becomes the help.
        arguments: of the command line.
        names: see `lightning_s2s.commands.messages.explain`.

    Raises:
        CommandError: a mistake in the options or the YAML.
        ValueError: fields that don't fit each other.
    """
    check_configs(arguments)
    description = (settings_class.__doc__ or "").partition("\n")[0]
    parser = SettingsParser(prog=program, description=description, usage=f"{program} [--config YAML] [options]")
    parser.names = names
    parser.add_argument("--config", action=ActionConfigFile, help="YAML with the options below")
    parser.add_class_arguments(settings_class, as_group=False)
    parsed = parser.instantiate(parser.parse_args(arguments))
    return settings_class(**{key: value for key, value in parsed.items() if key != "config"})
