"""`inf-middleware config` and `doctor`: what is in force and from where; mistakes in one line."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from inf_middleware.cli import main
from inf_middleware.ledgers.connection import version_of
from inf_middleware.ledgers.sqlite import SqliteLedger
from inf_middleware.ledgers.uris import ledger_of
from tests.events import event_of
from tests.ledgers.postgres_server import serving_postgres
from tests.ledgers.test_migration import old_ledger
from tests.redis_servers import RedisServer

HASH = "sha256:" + "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8"
TIER = '[[tiers.tier]]\nname = "basic"\nconcurrency = 1\nrequests_per_minute = 9\n'
WHOLE_TIER = TIER + "tokens_per_minute = 9\n"
ACCOUNT = '[[accounts.account]]\nid = "acme"\n'
KEYED = ACCOUNT + f"keys = ['{HASH}']\n"
PRICE = "[[prices.price]]\nmodel = 'm'\ninput = '1'\n"
UPSTREAM = "[upstream]\nurl = 'http://x'\n"
HTTPS = "[upstream]\nurl = 'https://x'\n"

# What is written, as variables or as the file's text, and what is said of it.
WRONG: list[tuple[dict[str, str] | str, str]] = [
    ({"ENFROCE": "0"}, "no variable INF_MIDDLEWARE_ENFROCE; did you mean INF_MIDDLEWARE_ENFORCE?"),
    ({"ENFORCE": "maybe"}, "INF_MIDDLEWARE_ENFORCE is 'maybe'; write 0 to refuse nobody, or 1"),
    ({"enforce": "0"}, "there is no variable INF_MIDDLEWARE_enforce"),
    ({"CONFIG": "nowhere.toml"}, "INF_MIDDLEWARE_CONFIG: settings: nowhere.toml cannot be read"),
    ({"CONFIG": "."}, "cannot be read"),
    ({"DIALECTS": "x"}, "INF_MIDDLEWARE_DIALECTS: dialects is given in code only"),
    ({"STORAGE_FILE": "none"}, "INF_MIDDLEWARE_STORAGE_FILE: none cannot be read"),
    ({"STORAGE": "memory://", "STORAGE_FILE": "x"}, "are both given; one of them is enough"),
    ({"STORAGE": "redis://:pw@localhost"}, "INF_MIDDLEWARE_STORAGE: storage is 'redis://…@localh"),
    ({"STORAGE": "memcached://:pw@h:1"}, "it must be memory:// or one of"),
    ({"STORAGE": "redis:/me:pw@h/1"}, "storage is 'redis:/…@h/1'; it must be memory:// or one of"),
    ({"STORAGE": "redis//:pw@h:6379"}, "INF_MIDDLEWARE_STORAGE: storage is '…@h:6379'; it must be"),
    ({"LEDGER": "me:pw@h/db"}, "INF_MIDDLEWARE_LEDGER: ledger is '…@h/db'; write"),
    ({"SINKS": '{ mine = "me:pw@h" }'}, "INF_MIDDLEWARE_SINKS: mine: sink '…@h' is not known"),
    ({"STORAGE": "redis+cluster://"}, "cannot open: RedisCluster requires at least one node"),
    (
        {"STORAGE": "valkey+cluster://"},
        "; write hosts and ports: valkey+cluster://localhost:7000,lo",
    ),
    ({"STORAGE": "redis+sentinel://h:1"}, "; write hosts, ports and the service's name: redis"),
    ({"STORAGE": "valkey://h"}, "; write host and port: valkey://localhost:6379"),
    ({"STORAGE_TIMEOUT_S": "0"}, "storage_timeout_s is 0; it must be more than 0"),
    (
        {"LEASE_S": "soon"},
        "INF_MIDDLEWARE_LEASE_S: lease_s is 'soon'; it must be a number of seconds from 1",
    ),
    ({"MAX_WAIT_S": "-1"}, "max_wait_s is -1; it must be a number of seconds from 0 to 3600"),
    ({"MAX_IN_FLIGHT": "many"}, "max_in_flight is 'many'; it must be a whole number of 1 or more"),
    ({"ON_STORAGE_ERROR": "open"}, '"local" or "refuse" or "admit"'),
    ({"BODY_BYTES_MAX": "8M"}, "body_bytes_max is '8M'; it must be a whole number"),
    ({"WEBSOCKETS": "allow"}, '"refuse" or "pass"'),
    ({"METRICS_PATH": "/metrics"}, "INF_MIDDLEWARE_METRICS_PATH: metrics_path is '/metrics', and"),
    ("[policies]\nexempt = ['v1/x']\n", "has 'v1/x', which no path is like; write \"/v1/x\""),
    (UPSTREAM + "paths = ['v1/*']\n", "line 3: [upstream]: paths has 'v1/*', which no path is lik"),
    ({"TRUSTED_PROXIES": "10.0.0.0/8,proxy"}, "INF_MIDDLEWARE_TRUSTED_PROXIES: trusted_proxies ha"),
    ({"ACCOUNTS": "sk-secret"}, "INF_MIDDLEWARE_ACCOUNTS: accounts is neither the path of a fil"),
    ({"ACCOUNTS": '{ "sk-secret" = "gold" }'}, "INF_MIDDLEWARE_ACCOUNTS: there is no tier 'gold'"),
    ({"ACCOUNTS": '{ "sk-secret" = 5 }'}, "accounts has a int for a key; give a level's name"),
    ({"ACCOUNTS": "oracle://me:pw@db/x"}, "INF_MIDDLEWARE_ACCOUNTS: ledger is 'oracle://…@db/x'"),
    ({"LEDGER": "postgresq://me:pw@h/x"}, '.db", or "postgresql://localhost:5432/inf"'),
    ({"LEDGER": "postgresql://me:pw@h:xx/b"}, "ledger is 'postgresql://…@h:xx/b', whose port"),
    ({"LEDGER": "postgresql://h:70000/b"}, "'postgresql://h:70000/b', whose port is no number"),
    ({"LEDGER": "postgresql:///b?port=x"}, "'postgresql:///b', whose port is no number from 1 to"),
    ({"LEDGER": "postgresql://me:p/w@h/b"}, "ledger is 'postgresql://…@h/b', whose port"),
    ({"ACCOUNTS": "postgres://h:xx/b"}, "INF_MIDDLEWARE_ACCOUNTS: ledger is 'postgres://h:xx/b'"),
    ({"MODE": "free"}, '"postpaid" or "prepaid"'),
    ({"ON_LEDGER_ERROR": "ignore"}, '"spool" or "refuse"'),
    ({"TIMEZONE": "Peking"}, "INF_MIDDLEWARE_TIMEZONE: timezone is 'Peking'; write a name such as"),
    ({"ANONYMOUS": "gold"}, "INF_MIDDLEWARE_ANONYMOUS: anonymous: there is no tier 'gold'"),
    ({"TIERS": "none.toml"}, "INF_MIDDLEWARE_TIERS: tiers: none.toml cannot be read"),
    ({"PRICES": "none.toml"}, "prices: none.toml cannot be read"),
    ({"COUNTER": "gpt-4"}, "shipped encodings are cl100k_base, o200k_base"),
    ({"INCLUDE_USAGE": "often"}, 'it must be true or false or "continuous"'),
    ({"ASSUMED_OUTPUT_TOKENS": "0"}, "assumed_output_tokens is 0; it must be a whole number"),
    ({"LEDGER": "oracle://me:pw@db/x"}, "INF_MIDDLEWARE_LEDGER: ledger is 'oracle://…@db/x'"),
    ({"SINKS": "jsonl:x"}, 'in code, { mine = "jsonl:events.jsonl" } in a file or a variable'),
    ({"SINKS": '{ mine = "kafka://me:pw@x" }'}, "known are"),
    ({"ON_DISCONNECT": "bill"}, '"produced" or "drain"'),
    ("[storage\n", "inf.toml: Expected ']'"),
    ("deployment = 'a'\ndeployment = 'b'\n", "(at line 2, column 17)"),
    ("\n[storrage]\n", "inf.toml, line 2: there is no storrage; did you mean storage?"),
    (
        "storage = 'memory://'\n",
        "inf.toml, line 1: storage is no section: write [storage]",
    ),
    ("[storage]\nurl = 'memory://'\n", "inf.toml, line 2: [storage] has no url; did you mean uri?"),
    (
        "[storage]\nenforce = false\n",
        "[storage] has no enforce; it belongs into [policies]",
    ),
    ("[meter]\ndeployment = 'x'\n", "line 2: [meter] has no deployment; it belongs before the fi"),
    ("[meter]\non_usage = 'x'\n", "inf.toml, line 2: on_usage is given in code only"),
    ("[policies]\n\nenforce = 'no'\n", "inf.toml, line 3, [policies]: enforce is 'no'; it must be"),
    (
        "[policies]\nexempt = [1]\n",
        "line 2, [policies]: exempt is [1]; it must be a list",
    ),
    ("help_url = 5\n", "inf.toml, line 1: help_url is 5; it must be a printable text"),
    (TIER, "inf.toml, line 1: [tiers]: tier 1 lacks tokens_per_minute"),
    (TIER + "rpm = 1\n", "tier 1 has unknown rpm; known are"),
    ("[tiers]\nfile = 'x.toml'\n" + TIER, "has `file`, and tier beside it; write one of them"),
    ("[prices]\nversion = 'x'\n", "inf.toml, line 2: [prices] has no [[prices.price]] table"),
    ("[[prices.price]]\nmodel = 'm'\ninput = 1.5\noutput = '1'\n", "write it as a decimal string"),
    (ACCOUNT, "inf.toml, line 1: [accounts]: account 1 (acme) lacks keys; write keys ="),
    (ACCOUNT + "keys = ['sk-secret']\n", "keys in clear do not belong into a file"),
    (ACCOUNT + f"keys = ['{HASH}']\ntier = 'gold'\n", "account 1 (acme): there is no tier 'gold'"),
    ("[sinks]\nmine = 5\n", "inf.toml, line 1, [sinks]: sinks['mine'] is 5; give"),
    (
        {"UPSTREAM": "localhost:8000"},
        "UPSTREAM: the upstream is 'localhost:8000'; it must be a URL",
    ),
    (
        {"UPSTREAM": "http://me:pw@host"},
        "the upstream is '…@host'; it must be a URL such as http://",
    ),
    ("\n[upstream]\nurll = 'x'\n", "line 3: [upstream] has unknown urll; did you mean url?"),
    ("\n[upstream]\nkey_file = 'x'\n", "line 2: [upstream] lacks url; write url = "),
    (UPSTREAM + "chunk_timeout = 3\n", "line 3: [upstream] has unknown chunk_timeout; did you"),
    (UPSTREAM + "key_file = 'none'\n", "line 3: [upstream]: key_file: none cannot be read"),
    ("[upstream]\nconnect_timeout_s = 0\nurl = 'http://x'\n", "line 2: [upstream]: connect_time"),
    (UPSTREAM + "paths = ['/v1/*']\nca_file = 'x'\n", "line 4: [upstream]: ca_file is for https"),
    (UPSTREAM + "ca_file = 'none'\n", "ca_file is for https, and the upstream is 'http://x'"),
    (
        HTTPS + "ca_file = 'none.pem'\n",
        "ca_file: none.pem has no certificates in PEM that can be re",
    ),
    (
        HTTPS + "ca_file = 'inf.toml'\n",
        "ca_file: inf.toml has no certificates in PEM that can be re",
    ),
    (
        "[ledger]\nuri = 'l.db'\n",
        "line 2, [ledger]: ledger is 'l.db'; write \"sqlite:///inf-ledger",
    ),
    (
        "[ledger]\nuri = 'sqlite://l.db'\n",
        "ledger is 'sqlite://l.db'; write \"sqlite:///inf-ledger",
    ),
    (
        "[ledger]\nsettle_timeout_s = '2s'\n",
        "is '2s'; it must be a number of seconds from 0 to 3600",
    ),
    ("[ledger]\nmode = 'pre-paid'\n", 'mode is \'pre-paid\'; it must be "postpaid" or "prepaid"'),
    ("timezone = 'UTC'\n", "line 1: there is no timezone; it belongs into [ledger] as timezone"),
    (
        "[sinks]\nmine = 'redis://h:1'\n",
        "line 1, [sinks]: mine: the URI of a Redis sink must be like",
    ),
    ("[sinks]\nmine = 'jsonl:x?byte_max=9'\n", 'write "jsonl:PATH", or "jsonl:PATH?bytes_max=1000'),
    ("[sinks]\nmine = 'http://'\n", 'mine: the URL of a sink must be like "https://'),
    ("sinks = ['jsonl:x']\n", "line 1: sinks is no section: write [sinks] and its keys below"),
    ("[storage]\nuri = 'redis://h:x'\n", "is 'redis://h:x', which limits cannot open"),
    ("[storage]\nlease_s = '30s'\n", "lease_s is '30s'; it must be a number of seconds from 1 to"),
    ("[meter]\ncounter = 'none.json'\n", "counter is 'none.json'; there is no such file"),
    ("[meter]\nassumed_output_token = 5\n", "did you mean assumed_output_tokens?"),
    ("[policies]\nmax_wait = 2\n", "[policies] has no max_wait; did you mean max_wait_s?"),
    (
        "[policies]\nbody_bytes_max = 8.5\n",
        "body_bytes_max is 8.5; it must be a whole number of 1 or",
    ),
    ("[Storage]\nuri = 'memory://'\n", "there is no Storage; did you mean storage?"),
    ("[limits]\nrpm = 4\n", "line 1: there is no limits; known are accounts, deployment,"),
    (KEYED + "teir = 'free'\n", "account 1 (acme) has unknown teir; did you mean tier?"),
    (KEYED + "suspended = 'yes'\n", "suspended of account acme is 'yes'; it must be true or false"),
    (KEYED + "recharged = '1,000'\n", "recharged of account acme is '1,000'; write a decimal such"),
    (KEYED + KEYED, "account 2 (acme) has the id of another; an account has all its keys in one"),
    (KEYED + KEYED.replace("acme", "b"), "account 2 (b) has a key that inf.toml [accounts]: accou"),
    (
        ACCOUNT + f"keys = '{HASH}'\n",
        'lacks keys; write keys = ["sha256:…"], make one with: printf',
    ),
    (
        ACCOUNT + "keys = ['sha256:abc']\n",
        "key 1 has a sha256: key that is not 64 hexadecimal digits",
    ),
    ("[accounts]\nfile = 'inf.toml'\n", "inf.toml has unknown accounts; did you mean account?"),
    ("[accounts]\nfile = 'a.json'\n", "neither the path of a file that ends in .toml nor the URI"),
    ("[accounts]\ntrusted_proxies = ['10.0.0.0/99']\n", 'such as "10.0.0.7", "10.0.0.0/8" or'),
    (
        WHOLE_TIER + "recharged_from = '500'\n",
        'one tier must have recharged_from = "0", for new acc',
    ),
    (WHOLE_TIER + WHOLE_TIER, "two tiers have one name (case does not count)"),
    (
        WHOLE_TIER + 'requests = ["1 per moon"]\n',
        "requests of tier basic has '1 per moon'; write a rat",
    ),
    (
        TIER + "tokens_per_minute = '32k'\n",
        "tokens_per_minute of tier basic is '32k'; it must be a",
    ),
    (TIER + "token_per_minute = 9\n", "unknown token_per_minute; did you mean tokens_per_minute?"),
    ("[[account]]\nid = 'acme'\n", "line 1: there is no account; write [[accounts.account]]"),
    (PRICE, "line 1: [prices]: price 1 lacks output"),
    (PRICE + "output = '-1'\n", "output price of m is '-1'; it must be 0 or more"),
    (PRICE + "output = '0.0001'\n", "the finest price is 0.001 per 1M tokens"),
    (PRICE + "outputs = '1'\n", "price 1 has unknown outputs; did you mean output?"),
    (PRICE + "output = '1'\nsince = 2027-01-01\n", "price 1 has unknown since; known are aliases,"),
    (PRICE + "output = '1'\nfrom = 'soon'\n", "write it in UTC: 2027-01-01T00:00:00Z"),
    (PRICE + "output = '1'\ncontext = '32k'\n", "it must be a whole number of tokens: 32768"),
    ("[prices]\nserves = 'm'\n", "serves is 'm'; it must be a list of texts: [\"inf-chat-v1\"]"),
]

SECRETS = ("pw", "sk-secret")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, **variables: str) -> Result:
    environment = {f"INF_MIDDLEWARE_{name}": text for name, text in variables.items()}
    return CliRunner().invoke(main, arguments, env=environment)


def test_there_are_more_than_forty_of_them() -> None:
    assert len(WRONG) >= 40


@pytest.mark.parametrize(("given", "words"), WRONG, ids=[words for _, words in WRONG])
@pytest.mark.parametrize("command", ["config check", "doctor", "serve"])
def test_a_wrong_setting_is_one_clear_line_and_exit_code_2(
    command: str, given: dict[str, str] | str, words: str
) -> None:
    if isinstance(given, str):
        Path("inf.toml").write_text(given)
        done = run(*command.split(), "--config", "inf.toml")
    else:
        done = run(*command.split(), **given)
    assert (done.exit_code, done.stdout) == (2, "")
    assert isinstance(done.exception, SystemExit)
    (line,) = done.stderr.splitlines()
    assert line.startswith("inf-middleware: ")
    assert words in line
    assert "INF_MIDDLEWARE_" in line or "inf.toml" in line
    assert not any(secret in line for secret in SECRETS)


def test_a_real_process_shows_no_traceback() -> None:
    command = [str(Path(sys.executable).with_name("inf-middleware")), "config", "check"]
    Path("inf.toml").write_text("[policies]\nenforce = 1\n")
    done = subprocess.run([*command, "--config", "inf.toml"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "inf-middleware: inf.toml, line 2, [policies]: enforce is 1; it must be true or false\n"
    )


def test_a_client_that_is_not_installed_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "valkey", None)
    done = run("config", "check", STORAGE="valkey://:pw@h:1")
    assert done.exit_code == 2
    assert done.stderr == (
        "inf-middleware: INF_MIDDLEWARE_STORAGE: storage is 'valkey://…@h:1', which needs valkey:"
        " pip install 'inf-middleware[valkey]'\n"
    )


def test_what_is_right_is_said_to_be_and_nothing_is_opened(tmp_path: Path) -> None:
    Path("inf.toml").write_text('[ledger]\nuri = "sqlite:///l.db"\n[sinks]\nf = "jsonl:e.jsonl"\n')
    done = run("config", "check", "--config", "inf.toml")
    assert done.exit_code == 0, done.output
    assert done.stdout == "Right: inf.toml; 2 settings, all others are defaults.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["inf.toml"]


def test_show_says_what_is_in_force_and_where_from_without_secrets() -> None:
    Path("inf.toml").write_text("\n[policies]\nmax_in_flight = 5\n[storage]\nlease_s = 9\n")
    variables = {"STORAGE": "redis://:pw@localhost:6379", "LEASE_S": "10"}
    variables["ACCOUNTS"] = '{ "sk-secret" = "free" }'
    done = run("config", "show", "--config", "inf.toml", "--json", **variables)
    said = json.loads(done.stdout)
    assert said["max_in_flight"] == {"value": 5, "from": "inf.toml, line 3"}
    assert said["lease_s"] == {"value": 10.0, "from": "INF_MIDDLEWARE_LEASE_S"}
    assert said["storage"]["value"] == "redis://…@localhost:6379"
    assert said["deployment"] == {"value": "default", "from": "default"}
    shown = run("config", "show", "--config", "inf.toml", **variables).stdout
    assert "max_in_flight" in shown
    assert "inf.toml, line 3" in shown
    for text in (done.stdout, shown):
        assert not any(secret in text for secret in SECRETS)


def test_what_is_said_of_the_upstream_is_counted_and_shown() -> None:
    Path("key").write_text("sk-secret")
    Path("inf.toml").write_text("\n" + UPSTREAM + "key_file = 'key'\npaths = ['/v1/*']\n")
    done = run("config", "check", "--config", "inf.toml")
    assert done.stdout == "Right: inf.toml; 3 settings, all others are defaults.\n"
    said = json.loads(run("config", "show", "--config", "inf.toml", "--json").stdout)
    assert said["upstream.url"] == {"value": "http://x", "from": "inf.toml, line 2"}
    assert said["upstream.key"] == {"value": "…", "from": "inf.toml, line 2"}
    assert said["upstream.paths"] == {"value": "/v1/*", "from": "inf.toml, line 2"}
    assert said["upstream.chunk_timeout_s"] == {"value": None, "from": "default"}
    variable = run("config", "show", "--config", "inf.toml", UPSTREAM="http://y:1").stdout
    assert "upstream.url http://y:1 INF_MIDDLEWARE_UPSTREAM" in " ".join(variable.split())
    assert "sk-secret" not in variable
    assert "upstream" not in run("config", "show").stdout
    assert "; 1 setting, all" in run("config", "check", UPSTREAM="http://y:1").stdout


def test_the_doctor_finds_a_healthy_house_healthy(tmp_path: Path) -> None:
    async def record() -> None:
        ledger = SqliteLedger("l.db")
        await ledger.settle(event_of(0))
        await ledger.aclose()

    asyncio.run(record())
    server = RedisServer(tmp_path / "redis")
    server.start()
    try:
        variables = {"STORAGE": server.uri, "LEDGER": "sqlite:///l.db"}
        done = run("doctor", **variables)
        assert done.exit_code == 0, done.output
        assert "All is well." in done.stdout
        assert f"ok     storage   {server.uri} answers in " in done.stdout
        assert "opens, 1 requests" in done.stdout
        assert server.ask("DBSIZE") == 0
        server.ask("CONFIG", "SET", "maxmemory", "100mb")
        server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        done = run("doctor", **variables)
        assert done.exit_code == 1
        assert "set maxmemory-policy noeviction" in done.stdout
    finally:
        server.stop()


def test_the_doctor_says_in_words_what_is_wrong_and_ends_with_1() -> None:
    Path("l.db").write_bytes(b"no ledger at all" * 500)
    Path("t.json").write_text("{}")
    done = run(
        "doctor",
        "--json",
        STORAGE="redis://:pw@127.0.0.1:1",
        LEDGER="sqlite:///l.db",
        COUNTER="t.json",
        ANONYMOUS="none",
    )
    assert done.exit_code == 1
    found = {one["part"]: one for one in json.loads(done.stdout)}
    wrong = {part for part, one in found.items() if not one["right"]}
    assert wrong == {"storage", "ledger", "counter", "accounts"}
    assert "redis://…@127.0.0.1:1 cannot be used" in found["storage"]["words"]
    assert "l.db cannot be used" in found["ledger"]["words"]
    assert "nobody is served" in found["accounts"]["words"]


def test_the_doctor_misses_a_folder_and_makes_no_file(tmp_path: Path) -> None:
    done = run("doctor", LEDGER="sqlite:///nowhere/l.db")
    assert done.exit_code == 1
    assert "there is no folder" in done.stdout
    assert "1 thing is wrong." in done.stdout
    assert run("doctor").exit_code == 0
    assert list(tmp_path.iterdir()) == []


def test_the_doctor_asks_a_ledger_in_postgresql_and_makes_nothing_there() -> None:
    with serving_postgres() as server:
        uri = server.uri()
        done = run("doctor", LEDGER=uri, ACCOUNTS=uri)
        assert done.exit_code == 0, done.output
        assert done.stdout.count("answers, and a ledger is made at first use") == 1

        async def record() -> None:
            ledger = ledger_of(uri)
            await ledger.settle(event_of(0))
            await ledger.aclose()

        asyncio.run(record())
        assert "opens, 1 requests" in run("doctor", LEDGER=uri).stdout
    done = run("doctor", LEDGER=uri)
    assert done.exit_code == 1
    shown = f"postgresql://…@{uri.partition('@')[2].partition('?')[0]}"
    assert f"cannot be used: the ledger {shown} cannot be reached: " in done.stdout
    assert "Error(" not in done.stdout


def test_the_doctor_leaves_a_ledger_of_an_older_version_as_it_is(tmp_path: Path) -> None:
    old_ledger(tmp_path / "l.db")
    done = run("doctor", LEDGER="sqlite:///l.db")
    assert (done.exit_code, "run `inf-middleware ledger migrate`" in done.stdout) == (1, True)
    assert version_of(tmp_path / "l.db") == 1


def test_defaults_that_follow_from_the_mode_are_shown_as_they_are() -> None:
    for mode, unpriced, on_error in (("postpaid", "record", "spool"), ("prepaid", *["refuse"] * 2)):
        said = json.loads(run("config", "show", "--json", MODE=mode).stdout)
        assert said["unpriced"] == {"value": unpriced, "from": "default"}
        assert said["on_ledger_error"] == {"value": on_error, "from": "default"}
