"""`inf-middleware init`: settings and accounts to begin with, written into the current folder."""

import json
import os
import secrets
from pathlib import Path

import click

from inf_middleware.cli.table import printable, width
from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.keys import DIGEST_PREFIX, digest_of
from inf_middleware.domain.tiers import Tiers
from inf_middleware.upstream import Upstream

CONFIG, ACCOUNTS = "inf.toml", "accounts.toml"

# 256 bits: nobody guesses one.
_KEY_BYTES = 32

_CONFIG_TEXT = """\
# Settings of inf-middleware. Start the proxy with: inf-middleware serve --config inf.toml

[upstream]
url = {url}
# paths = ["/v1/*", "/api/chat"]      # what is forwarded; everything if not given
# key_file = "upstream.key"           # sent in the place of the caller's key
# first_byte_timeout_s = 600          # 504 beyond

[accounts]
file = "accounts.toml"                # who may call; beside this file

[ledger]
uri = "sqlite:///inf-ledger.db"       # what was used, and what it costs

# [storage]
# uri = "redis://localhost:6379"      # limits shared by many processes; else in this one

# [tiers]
# file = "tiers.toml"                 # levels of your own

# [prices]
# file = "prices.toml"                # a price list of your own
# serves = ["inf-chat-v1"]            # other models are 404

# [sinks]
# file = "jsonl:events.jsonl"         # where bills are sent
"""


@click.command()
@click.option("--users", required=True, help="Names, one account each: alice,bob.")
@click.option("--tier", default="Free", show_default=True, help="Their level.")
@click.option("--upstream", default="http://localhost:8000", show_default=True)
def init(users: str, tier: str, upstream: str) -> None:
    """Write inf.toml and accounts.toml, and show each user's new key once."""
    try:
        names = _names(users)
        level = Tiers.default().named(tier).name
        Upstream(url=upstream)
        _refuse_existing()
        keys = {name: f"sk-{secrets.token_urlsafe(_KEY_BYTES)}" for name in names}
        _write(ACCOUNTS, "\n".join(_entry(name, level, key) for name, key in keys.items()))
        _write(CONFIG, _CONFIG_TEXT.format(url=json.dumps(upstream)))
    except ConfigError as error:
        click.echo(f"inf-middleware: {printable(str(error))}", err=True)
        raise SystemExit(2) from None
    click.echo(f"Wrote {CONFIG} and {ACCOUNTS}. The keys are shown this once:\n")
    wide = max(width(name) for name in ("user", *names))
    for name, key in (("user", "key"), *keys.items()):
        click.echo(f"  {name}{' ' * (wide - width(name))}  {key}")
    click.echo(f"\nAll are on the level {level}. Next:\n\n  inf-middleware serve --config {CONFIG}")


def _names(users: str) -> list[str]:
    names = [name.strip() for name in users.split(",")]
    if not all(name and name.isprintable() for name in names):
        raise ConfigError(f"--users is {users!r}; write names with commas between: alice,bob")
    if len(set(names)) < len(names):
        raise ConfigError(f"--users is {users!r}, and names one twice; an account has one name")
    return names


def _refuse_existing() -> None:
    there = [name for name in (CONFIG, ACCOUNTS) if os.path.lexists(name)]
    if there:
        raise ConfigError(
            f"{' and '.join(there)} already here; nothing was written: move them away,"
            " or work in another folder"
        )


def _entry(name: str, level: str, key: str) -> str:
    digest = DIGEST_PREFIX + digest_of(key).hex()
    # A string of JSON is one of TOML.
    quoted = json.dumps(name, ensure_ascii=False)
    return f'[[account]]\nid = {quoted}\ntier = {json.dumps(level)}\nkeys = ["{digest}"]\n'


def _write(name: str, text: str) -> None:
    """Write a new file that its owner alone reads; never over another."""
    try:
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"{Path(name).absolute()} cannot be written: {error}") from None
