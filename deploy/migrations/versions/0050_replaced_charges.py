"""What a reversal gave back to credits is found by the charge that it takes back: it pays for what stands in its place."""

from alembic import op

revision = "0050_replaced_charges"
down_revision = "0049_wallets_stay"
branch_labels = None
depends_on = None

STATEMENTS = (
    "alter table balance.funding add column reverses uuid",
    "create index funding_of_reversal on balance.funding (reverses) where reverses is not null",
    "comment on column balance.funding.reverses is 'of what a reversal gives back: the charge that it takes back'",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
