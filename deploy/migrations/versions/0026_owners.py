"""Numbers and outbound profiles move between accounts and are released: whose they are, over time."""

from alembic import op

revision = "0026_owners"
down_revision = "0025_maximum_price"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
create table groups.resource_owner (
  resource_no bigint not null references groups.resource (resource_no),
  during tstzrange not null check (not isempty(during) and not lower_inf(during) and lower_inc(during)),
  account_id text references groups.account,
  constraint one_owner_at_a_time
    exclude using gist (int8range(resource_no, resource_no, '[]') with &&, during with &&)
)
""",
    # until now a resource stayed with the account that registered it
    """
insert into groups.resource_owner (resource_no, during, account_id)
select resource_no, tstzrange(min(lower(during)), null), account_id
from groups.resource join groups.resource_cost_center using (resource_no) group by resource_no, account_id
""",
    "alter table groups.resource alter column account_id drop not null",
    # a number that was released may be registered again, as another resource
    "alter table groups.resource drop constraint resource_number_key",
    "create unique index resource_number on groups.resource (number) where account_id is not null",
    "create index resource_numbers on groups.resource (number)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
