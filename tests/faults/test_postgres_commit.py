"""A connection to PostgreSQL lost when all is done and nothing heard: still one bill."""

import asyncio
from typing import Any

import asyncpg
from click.testing import CliRunner

from inf_middleware import Account, CostLedger
from inf_middleware.cli import main
from tests.apps import JsonApp, completion, usage_of
from tests.driver import post
from tests.faults.load import PATIENCE_S
from tests.kit import CHAT
from tests.ledgers.postgres_server import serving_postgres
from tests.processes import free_ports
from tests.tcp_proxy import proxying


async def bills(connection: Any) -> list[str]:
    rows = await connection.fetch(
        "SELECT request_id FROM inf_ledger.request WHERE kind = 'usage' ORDER BY seq"
    )
    return [row[0] for row in rows]


def test_a_bill_whose_commit_nobody_heard_of_is_tried_again_and_is_one() -> None:
    async def go(straight: str, way: str, proxy: Any) -> None:
        model = JsonApp(completion(usage=usage_of(10, 5)))
        lost = False

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if lost:
                proxy.partition("answers")
            await model(scope, receive, send)

        ledger = CostLedger(
            app,
            ledger=way,
            accounts={"sk-one": Account("acme")},
            on_ledger_error="refuse",
            settle_timeout_s=PATIENCE_S,
        )
        # After the first the writer's heart beats, and only then the second is written.
        answers = [await post(ledger, CHAT, key="sk-one") for _ in range(2)]
        aside = await asyncpg.connect(straight)
        lost = True
        asked = asyncio.create_task(post(ledger, CHAT, key="sk-one"))
        deadline = asyncio.get_running_loop().time() + PATIENCE_S
        while len(await bills(aside)) < 3:  # it is done, and nobody has heard of it
            assert asyncio.get_running_loop().time() < deadline
            assert not asked.done()
        lost = False
        await asyncio.to_thread(proxy.cut)
        await asyncio.to_thread(proxy.heal)
        answers.append(await asked)
        assert [answer.status for answer in answers] == [200] * 3
        assert await bills(aside) == [answer.headers["x-request-id"] for answer in answers]
        await aside.close()
        await ledger._stack.worker._parts.billing.ledger.aclose()

    (port,) = free_ports(1)
    with serving_postgres(port) as server, proxying(port) as proxy:
        straight, way = server.uris(proxy.port)
        asyncio.run(go(straight, way, proxy))
        reconciled = CliRunner().invoke(main, ["ledger", "reconcile", "--ledger", straight])
        assert reconciled.exit_code == 0, reconciled.output
