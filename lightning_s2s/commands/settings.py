"""A command whose settings are one dataclass: `--config YAML` and an option for each field."""

from __future__ import annotations

from typing import NoReturn, TypeVar

from jsonargparse import ActionConfigFile, ArgumentParser

from lightning_s2s.commands.messages import CommandError, Names, check_configs, explain

Settings = TypeVar("Settings")


class SettingsParser(ArgumentParser):
    """Raises each mistake as one line with near names, those of keys that hold a class from `names`."""

    names: Names | None = None

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # jsonargparse tries alternatives with parsers of its own
            super().error(message, ex)
        options = [option for action in self._actions for option in action.option_strings]
        raise CommandError(explain(message, options, self.names)) from ex


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
