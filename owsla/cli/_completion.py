"""`owsla completion`: the completion of a shell, made from the argument parser itself."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from ._print import put

FILES: Final = frozenset({"FILE", "PATH"})
"""Names of values that are files: the shell completes them."""


@dataclass(frozen=True, slots=True)
class OptionWords:
    """An option, as a shell completes it."""

    names: Sequence[str]
    """The option, and its short form."""
    takes_value: bool
    choices: Sequence[str]
    """Its values, or none if they are not known."""
    files: bool
    """Whether its value is a file."""
    help: str


@dataclass(frozen=True, slots=True)
class CommandWords:
    """A command, as a shell completes it."""

    name: str
    help: str
    options: Sequence[OptionWords]
    choices: Sequence[str]
    """Values of its first argument."""


def command(args: argparse.Namespace, environ: Mapping[str, str]) -> Callable[[], int]:
    """Return `owsla completion`, ready to run."""
    return partial(_show, args.shell, args.parser)


def _show(shell: str, parser: argparse.ArgumentParser) -> int:
    put(script(shell, list(commands_of(parser))))
    return 0


def commands_of(parser: argparse.ArgumentParser) -> Iterator[CommandWords]:
    """Yield the commands of a parser; the first has no name, and the options of `owsla` itself.

    argparse has no public list of its actions. Its private one has not changed since Python 2.7, and is what others use.
    """
    yield CommandWords("", "", list(_options(parser)), ())
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, one in action.choices.items():
                first = next((each for each in one._actions if not each.option_strings), None)
                choices = () if first is None or first.choices is None else tuple(map(str, first.choices))
                summary = re.split(r"[.:](?:\s|$)", " ".join((one.description or "").split()), maxsplit=1)[0]
                yield CommandWords(name, summary, list(_options(one)), choices)


def _options(parser: argparse.ArgumentParser) -> Iterator[OptionWords]:
    for action in parser._actions:
        if action.option_strings and action.help != argparse.SUPPRESS:
            text = " ".join((action.help or "").replace("%%", "%").split())
            yield OptionWords(
                action.option_strings,
                action.nargs != 0,
                () if action.choices is None else tuple(map(str, action.choices)),
                action.metavar in FILES,
                re.split(r"[;:](?=\s)| \(", text, maxsplit=1)[0].strip(),
            )


def script(shell: str, commands: Sequence[CommandWords]) -> str:
    """Return the completion script of a shell: `bash`, `zsh` or `fish`."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](commands)


# -- bash ------------------------------------------------------------------------------------------------------------------

_BASH: Final = r"""# bash completion of owsla, printed by: owsla completion bash
_owsla() {
    # "=" is a word of its own for bash; the option before it is the one to complete.
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command="" index
    if [[ $word == "=" ]]; then
        word=""
    elif [[ $before == "=" ]]; then
        before=${COMP_WORDS[COMP_CWORD-2]}
    fi
    for ((index = 1; index < COMP_CWORD; index++)); do
        if [[ ${COMP_WORDS[index]} != -* ]]; then
            command=${COMP_WORDS[index]}
            break
        fi
    done
    local options="" values="" files="" arguments=""
    case $command in
@CASES@
    *) return ;;
    esac
    COMPREPLY=()
    case " $files " in
    *" $before "*)
        local IFS=$'\n'
        compopt -o filenames 2>/dev/null
        COMPREPLY=($(compgen -f -- "$word"))
        return
        ;;
    esac
    local one
    for one in $values; do
        if [[ ${one%%=*} == "$before" ]]; then
            one=${one#*=}
            COMPREPLY=($(compgen -W "${one//,/ }" -- "$word"))
            return
        fi
    done
    if [[ $word == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$word"))
    else
        COMPREPLY=($(compgen -W "$arguments" -- "$word"))
    fi
}
complete -F _owsla owsla
"""


def _bash(commands: Sequence[CommandWords]) -> str:
    return _BASH.replace("@CASES@", "\n".join(_bash_case(one, commands) for one in commands))


def _bash_case(one: CommandWords, commands: Sequence[CommandWords]) -> str:
    arguments = one.choices if one.name else [each.name for each in commands if each.name]
    # An option whose value is not known is one with no values: nothing is offered after it.
    values = [
        f"{name}={','.join(option.choices)}"
        for option in one.options
        if option.takes_value and not option.files
        for name in option.names
    ]
    words = {
        "options": [name for option in one.options for name in option.names],
        "values": values,
        "files": [name for option in one.options if option.files for name in option.names],
        "arguments": arguments,
    }
    lines = "".join(f'\n        {name}="{" ".join(texts)}"' for name, texts in words.items() if texts)
    return f"    {one.name or chr(34) * 2}){lines}\n        ;;"


# -- zsh -------------------------------------------------------------------------------------------------------------------

_ZSH: Final = """#compdef owsla
# zsh completion of owsla, printed by: owsla completion zsh
_owsla() {
    local -a commands
    local context state state_descr line
    typeset -A opt_args
    commands=(
@COMMANDS@
    )
    _arguments -C @OPTIONS@ '1: :->command' '*:: :->arguments'
    case $state in
    command) _describe -t commands command commands ;;
    arguments)
        case $words[1] in
@CASES@
        esac
        ;;
    esac
}
if [ "$funcstack[1]" = "_owsla" ]; then
    _owsla "$@"
else
    compdef _owsla owsla
fi
"""


def _zsh(commands: Sequence[CommandWords]) -> str:
    top, *others = commands
    described = "\n".join("        " + _quoted(f"{one.name}:{one.help}") for one in others)
    cases = "\n".join(
        f"        {one.name})\n            _arguments " + " ".join([*map(_zsh_option, one.options), *_zsh_arguments(one)])
        + " ;;"
        for one in others
    )  # fmt: skip
    return (
        _ZSH.replace("@COMMANDS@", described)
        .replace("@OPTIONS@", " ".join(map(_zsh_option, top.options)))
        .replace("@CASES@", cases)
    )


def _zsh_option(option: OptionWords) -> str:
    text = re.sub(r"([\[\]:\\])", r"\\\1", option.help)
    action = ""
    if option.files:
        action = ":file:_files"
    elif option.choices:
        action = f":value:({' '.join(option.choices)})"
    elif option.takes_value:
        action = ":value: "
    return " ".join(
        _quoted(f"*{name}{'=' if option.takes_value and name.startswith('--') else ''}[{text}]{action}")
        for name in option.names
    )


def _zsh_arguments(one: CommandWords) -> list[str]:
    return [_quoted(f"1:argument:({' '.join(one.choices)})")] if one.choices else []


# -- fish ------------------------------------------------------------------------------------------------------------------


def _fish(commands: Sequence[CommandWords]) -> str:
    top, *others = commands
    lines = ["# fish completion of owsla, printed by: owsla completion fish", "complete -c owsla -f"]
    for one in others:
        lines.append(f"complete -c owsla -n __fish_use_subcommand -a {one.name} -d {_quoted_for_fish(one.help)}")
    for option in top.options:
        lines.append(_fish_option(option, "__fish_use_subcommand"))
    for one in others:
        condition = f"'__fish_seen_subcommand_from {one.name}'"
        lines += [_fish_option(option, condition) for option in one.options]
        if one.choices:
            lines.append(f"complete -c owsla -n {condition} -a {_quoted_for_fish(' '.join(one.choices))}")
    return "\n".join(lines) + "\n"


def _fish_option(option: OptionWords, condition: str) -> str:
    names = [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names]
    value = []
    if option.files:
        value = ["-r", "-F"]
    elif option.choices:
        value = ["-x", "-a", _quoted_for_fish(" ".join(option.choices))]
    elif option.takes_value:
        value = ["-x"]
    return " ".join(["complete -c owsla -n", condition, *names, *value, "-d", _quoted_for_fish(option.help)])


def _quoted(text: str) -> str:
    """Return a text in single quotes, for zsh."""
    return "'" + text.replace("'", "'\\''") + "'"


def _quoted_for_fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
