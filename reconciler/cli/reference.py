"""`reconcile completion` and `reconcile man`, made from the parser.

Both walk the parser itself, so that they have every option, and no option that is gone.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterator, Mapping
from shlex import quote
from typing import Final, NamedTuple

from reconciler import __version__
from reconciler.errors import EXIT_MEANINGS, ExitCode
from reconciler.settings import Settings

_EXAMPLES: Final = {"WHEN": ["90m", "24h", "7d", "2w"]}  # by metavar


class _Word(NamedTuple):
    """A word that may be typed at a place, and its meaning."""

    text: str
    meaning: str


class _Place(NamedTuple):
    """A place in the command line: the words of a command (none before any command), and its parser."""

    words: tuple[str, ...]
    parser: argparse.ArgumentParser

    @property
    def options(self) -> list[argparse.Action]:
        return [action for action in self.parser._actions if action.option_strings]

    @property
    def operands(self) -> list[argparse.Action]:
        return [action for action in self.parser._actions if not action.option_strings and not _is_commands(action)]

    @property
    def next_words(self) -> list[_Word]:
        """The commands and choices that may follow; a mapping of choices gives the meaning of each."""
        words = []
        for action in self.parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                words += [_Word(sub.dest, _meaning(sub)) for sub in action._get_subactions()]
            elif not action.option_strings and action.choices:
                meanings = action.choices if isinstance(action.choices, Mapping) else {}
                words += [_Word(str(choice), meanings.get(choice, "")) for choice in action.choices]
        return words

    @property
    def option_words(self) -> list[_Word]:
        """The long options."""
        return [_Word(option.option_strings[-1], _meaning(option)) for option in self.options]


def print_completion(args: argparse.Namespace) -> int:
    """Print a script with which a shell completes our commands and options."""
    places = list(_places(args.parser))
    print({"bash": _bash, "zsh": _zsh, "fish": _fish}[args.shell](places))
    return int(ExitCode.DONE)


def print_man(args: argparse.Namespace) -> int:
    """Print the man page, for `reconcile man > m.1 && man -l m.1`, or to be installed as reconcile.1."""
    print("\n".join(_man(list(_places(args.parser)))))
    return int(ExitCode.DONE)


def _places(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[_Place]:
    yield _Place(words, parser)
    for action in filter(_is_commands, parser._actions):
        assert action.choices
        for name in action.choices:
            yield from _places(action.choices[name], (*words, name))  # type: ignore[index]


def _is_commands(action: argparse.Action) -> bool:
    return isinstance(action, argparse._SubParsersAction)


def _meaning(action: argparse.Action) -> str:
    return (action.help or "").replace("%%", "%")


# Shells: commands come first, so the words typed so far name the place.


def _valued(places: list[_Place]) -> dict[str, str]:
    """Return the options that take a value, each with its metavar."""
    return {
        option.option_strings[-1]: str(option.metavar)
        for place in places
        for option in place.options
        if option.nargs is None
    }


def _bash(places: list[_Place]) -> str:
    def line(pattern: str, name: str, words: list[_Word]) -> str:
        return f"        {pattern}) {name}={quote(' '.join(word.text for word in words))} ;;"

    next_words = "\n".join(line(_exactly(place), "words", place.next_words) for place in places if place.next_words)
    options = "\n".join(line(_within(place), "options", place.option_words) for place in reversed(places))
    values = "\n".join(
        f"        {option}) COMPREPLY=($(compgen -W '{' '.join(_EXAMPLES.get(kind, ()))}' -- \"$current\")); return ;;"
        for option, kind in _valued(places).items()
    )
    return f"""\
# In ~/.bashrc: source <(reconcile completion bash)
# or for everybody: reconcile completion bash > /etc/bash_completion.d/reconcile
_reconcile() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words="" options="" IFS=$' \\t\\n'
    # --since=7d is three words to bash.
    if [[ $current == = ]]; then current=""; elif [[ $before == = ]]; then before=${{COMP_WORDS[COMP_CWORD-2]}}; fi
    case "$before" in
{values}
    esac
    local typed="${{COMP_WORDS[*]:1:COMP_CWORD-1}} "
    case "$typed" in
{next_words}
    esac
    case "$typed" in
{options}
    esac
    if [[ -z $words || $current == -* ]]; then words=$options; fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _reconcile reconcile"""


def _zsh(places: list[_Place]) -> str:
    def line(pattern: str, name: str, words: list[_Word]) -> str:
        described = (f"{word.text}:{word.meaning.replace(':', chr(92) + ':')}".rstrip(":") for word in words)
        return f"        {pattern}) {name}=({' '.join(map(quote, described))}) ;;"

    next_words = "\n".join(line(_exactly(place), "found", place.next_words) for place in places if place.next_words)
    options = "\n".join(line(_within(place), "options", place.option_words) for place in reversed(places))
    values = "\n".join(
        f"        {option}) {'_files' if kind == 'FILE' else f'compadd -V values {examples}'.rstrip()}; return ;;"
        for option, kind in _valued(places).items()
        for examples in [" ".join(_EXAMPLES.get(kind, ()))]
    )
    return f"""\
#compdef reconcile
# In ~/.zshrc, below compinit: source <(reconcile completion zsh)
# or for everybody: reconcile completion zsh > /usr/local/share/zsh/site-functions/_reconcile
_reconcile() {{
    local -a found options
    local before=${{words[CURRENT-1]}} typed="${{words[2,CURRENT-1]}} "
    if [[ ${{words[CURRENT]}} == --*=* ]]; then before=${{words[CURRENT]%%=*}}; compset -P '*='; fi
    case "$before" in
{values}
    esac
    case "$typed" in
{next_words}
    esac
    case "$typed" in
{options}
    esac
    if [[ -z $found || ${{words[CURRENT]}} == -* ]]; then found=($options); fi
    _describe -V reconcile found
}}
# A file in $fpath is run as the function itself, at the first completion.
if [[ ${{funcstack[1]}} == _reconcile ]]; then _reconcile "$@"; else compdef _reconcile reconcile; fi"""


def _exactly(place: _Place) -> str:
    """Return the pattern of the words typed so far at exactly this place, and a space."""
    return quote(" ".join(place.words) + " ")


def _within(place: _Place) -> str:
    """Return the pattern of the words typed so far at this place or behind it."""
    return f"{_exactly(place)}*" if place.words else "' '*|-*"


def _fish(places: list[_Place]) -> str:
    lines = ["# reconcile completion fish > ~/.config/fish/completions/reconcile.fish", "complete -c reconcile -f"]
    for place in places:
        tests = [f'test "$typed[{number}]" = {word}' for number, word in enumerate(place.words, start=2)]
        if not place.words:
            tests = ["not string match -qr '^[^-]' -- \"$typed[2]\""]
        # A command or a choice can only be the next word.
        here = [*tests, f"test (count $typed) -eq {len(place.words) + 1}"]
        lines += (f"{_fish_line(here)} -a {word.text} -d {quote(word.meaning)}" for word in place.next_words)
        for word in place.option_words:
            value = _fish_value(_valued([place]).get(word.text))
            lines.append(f"{_fish_line(tests)} -l {word.text[2:]}{value} -d {quote(word.meaning)}")
    return "\n".join(lines)


def _fish_line(tests: list[str]) -> str:
    """Return the beginning of a line that applies if all tests are true."""
    condition = "; and ".join(tests)
    return f"complete -c reconcile -n {quote(f'set -l typed (commandline -opc); {condition}')}"


def _fish_value(kind: str | None) -> str:
    if kind is None:
        return ""
    return " -r -F" if kind == "FILE" else f" -x -k -a {quote(' '.join(_EXAMPLES.get(kind, ())))}"


# man: https://man7.org/linux/man-pages/man7/groff_man.7.html


def _man(places: list[_Place]) -> Iterator[str]:
    root, *commands = places
    yield f'.TH RECONCILE 1 "" "reconciler {__version__}" "User Commands"'
    yield from (".SH NAME", f"reconcile {chr(92)}- {_roff('make a Twilio Call Viewer database equal to Twilio')}")
    yield ".SH SYNOPSIS"
    yield from _usage(root)
    for place in commands:
        yield ".br"
        yield from _usage(place)
    yield from (".SH DESCRIPTION", _roff(root.parser.description or ""))
    yield "Results go to standard output, logs and progress to standard error."
    yield ".SH OPTIONS"
    yield from _described(root)
    yield ".SH COMMANDS"
    for place in commands:
        yield from (f".SS {_roff(' '.join(place.words))}", _roff(place.parser.description or ""))
        yield from _described(place)
    yield from (".SH ENVIRONMENT", "Read from the environment, or from a file of NAME=value lines named by")
    yield ".BR RECONCILER_CONFIG ;"
    yield from ("secrets also from a file named by", ".IR NAME _FILE", "and from systemd credentials.")
    for field in dataclasses.fields(Settings):
        default = f" (default: {field.metadata['default']})" if field.metadata["default"] else ""
        yield from (".TP", f".B {field.metadata['name']}", _roff(field.metadata["meaning"] + default))
    yield ".SH EXIT STATUS"
    for code, meaning in EXIT_MEANINGS.items():
        yield from (".TP", f".B {int(code)}", _roff(meaning))


def _usage(place: _Place) -> Iterator[str]:
    usage = re.sub(r"\s+", " ", place.parser.format_usage()).removeprefix("usage: ").strip()
    yield f".B {_roff(usage)}"


def _described(place: _Place) -> Iterator[str]:
    for action in (*place.operands, *place.options):
        if isinstance(action, argparse._HelpAction) and place.words:
            continue  # every command has --help
        names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        value = f" {action.metavar}" if action.option_strings and action.metavar else ""
        yield from (".TP", f".B {_roff(names + value)}", _roff(_meaning(action)))


def _roff(text: str) -> str:
    """Return `text` escaped for roff."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    text = re.sub(r"[^\x00-\x7f]", lambda letter: f"\\[u{ord(letter[0]):04X}]", text)
    return f"\\&{text}" if text.startswith((".", "'")) else text
