"""Two workers, on one host or on several, whose accounts and bills are in one PostgreSQL.

pip install 'inf-middleware[postgres]' uvicorn
export LEDGER=postgresql://postgres@localhost/billing
inf-middleware recharge acme 500 --reference r1 --ledger $LEDGER
inf-middleware key issue acme --ledger $LEDGER
uvicorn --app-dir examples postgres_workers:app --workers 2

Whichever worker answers, and whatever becomes of it, each answer is billed once:
`inf-middleware ledger reconcile --ledger $LEDGER`.
"""

import os

# The example next to this one; in your project it is the model server you have already.
from model_app import build_app

from inf_middleware import CostLedger, TierLimiter, TokenMeter

LEDGER = os.environ.get("LEDGER", "postgresql://postgres@localhost/billing")

app = build_app()
app.add_middleware(TokenMeter)
# Keys, levels and suspensions are the ledger's: every worker sees a change within a second. Limits
# over several workers need storage="redis://…" as well; without it each worker counts its own.
app.add_middleware(TierLimiter, accounts=LEDGER)
app.add_middleware(CostLedger, ledger=LEDGER)
