"""The `tollbook` command. A group of commands is a file of its own, imported only when it is asked for.

Exit codes: 0 done; 1 refused, or a difference was found, or a server does not answer; 2 the command line is wrong.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence

import typer

from services.cli.output import visible
from services.kernel.errors import InvalidInput, TollbookError

REFUSED, USAGE = 1, 2

COMMANDS = {
    "up": "services.cli.up:up",
    "run": "services.cli.run:run",
    "demo": "services.cli.demo:demo",
    "org": "services.cli.org:app",
    "account": "services.cli.account:app",
    "payout": "services.cli.payout:app",
    "ledger": "services.cli.ledger:app",
    "group": "services.cli.group:app",
    "credit": "services.cli.credit:app",
    "price": "services.cli.price:app",
    "import": "services.cli.importing:import_file",
    "profile": "services.cli.profile:app",
    "call": "services.cli.call:app",
    "charge": "services.cli.charge:app",
    "simulate": "services.cli.simulate:simulate",
    "rerate": "services.cli.rerate:app",
    "reassignment": "services.cli.reassignment:app",
    "invoice": "services.cli.invoice:app",
    "credit-note": "services.cli.credit_note:app",
    "webhook": "services.cli.webhook:app",
    "quarantine": "services.cli.quarantine:app",
    "lane": "services.cli.lane:app",
    "restore": "services.cli.restore:restore",
    "verify": "services.cli.verifying:verify",
    "clock": "services.cli.clock:app",
}
"""Each name with what it is, a command or a group of them, in the order of the help page."""


def program(arguments: Sequence[str]) -> typer.Typer:
    """The command line with the one command that is asked for; with all of them where none is named (help, completion)."""
    app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)

    @app.callback()
    def tollbook() -> None:
        """The billing engine of a telephony company: from a switch's records to wallets and provable invoices."""

    asked = arguments[0] if arguments else ""
    for name, place in COMMANDS.items():
        if asked in COMMANDS and name != asked:
            continue
        module, _, attribute = place.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=name)
        else:
            app.command(name)(found)
    return app


def main() -> None:
    """Runs one command; what a user can cause ends with one sentence, never with a traceback."""
    if sys.argv[1:2] != ["run"]:
        # The Kafka client warns of every retry; a command says by itself when it gives up. A room logs as it is told.
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    try:
        program(sys.argv[1:])(prog_name="tollbook")
    except TollbookError as error:
        typer.echo(visible(str(error)), err=True)
        sys.exit(USAGE if isinstance(error, InvalidInput) else REFUSED)


if __name__ == "__main__":
    main()
